# The table of compile flags of each ISA level; no other file has flags such as -mavx2.
# A level is src/cpp/kernels/isa_<level>.cpp. Levels that the target cannot run are left out. The definitions
# SOMA_HAVE_<LEVEL> tell the dispatcher which levels were built.

set(SOMA_ISA_FLAGS_scalar "")
set(SOMA_ISA_FLAGS_sse "-msse2")
set(SOMA_ISA_FLAGS_avx2 "-mavx2;-mfma")
set(SOMA_ISA_FLAGS_avx512 "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mfma;-mprefer-vector-width=512")
set(SOMA_ISA_FLAGS_avx512_bf16 "${SOMA_ISA_FLAGS_avx512};-mavx512bf16")
set(SOMA_ISA_FLAGS_amx "${SOMA_ISA_FLAGS_avx512_bf16};-mamx-tile;-mamx-bf16")
set(SOMA_ISA_FLAGS_neon "")
set(SOMA_ISA_FLAGS_neon_bf16 "-march=armv8.2-a+bf16")
if(MSVC)
  set(SOMA_ISA_FLAGS_sse "")
  set(SOMA_ISA_FLAGS_avx2 "/arch:AVX2")
  set(SOMA_ISA_FLAGS_avx512 "/arch:AVX512")
endif()

# First the flags of the environment (-march=native) and the compiler's defaults are undone. -mno-sse3 also undoes
# explicit -mavx512f and the like, which need SSE3. So every build runs on every x86-64 processor.
set(SOMA_X86_RESET -march=x86-64 -mtune=generic -mprefer-vector-width=none -mno-sse3 -mno-popcnt -mno-lzcnt -mno-bmi
  -mno-bmi2 -mno-tbm -mno-movbe -mno-adx -mno-prfchw)
# The same on Arm; Apple's compiler already aims at the oldest of its processors.
set(SOMA_ARM_RESET -march=armv8-a -mtune=generic)

function(soma_reset_isa target)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT MSVC)
    target_compile_options(${target} PRIVATE ${SOMA_X86_RESET})
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$" AND NOT MSVC AND NOT APPLE)
    target_compile_options(${target} PRIVATE ${SOMA_ARM_RESET})
  endif()
endfunction()

option(SOMA_EMULATE_AMX "Emulate the tiles of AMX in memory, to test the amx level on any processor" OFF)

function(soma_add_isa_kernels target)
  soma_reset_isa(${target})  # the flags of a level follow
  set(levels scalar)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    list(APPEND levels sse avx2 avx512)
    if(NOT MSVC)
      list(APPEND levels avx512_bf16)
      if(CMAKE_SYSTEM_NAME STREQUAL "Linux")  # on other systems, the permission to use tiles has not been tried
        list(APPEND levels amx)
      endif()
    endif()
  endif()
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
    list(APPEND levels neon)
    if(NOT MSVC)
      list(APPEND levels neon_bf16)
    endif()
  endif()
  if(SOMA_EMULATE_AMX)
    file(READ /proc/cpuinfo cpuinfo)
    set(below avx2)
    if(cpuinfo MATCHES "avx512_bf16")
      set(below avx512_bf16)
    endif()
    message(STATUS "AMX is emulated with the registers of ${below}")
    set(SOMA_ISA_FLAGS_amx "${SOMA_ISA_FLAGS_${below}}")
    target_compile_definitions(${target} PRIVATE SOMA_EMULATE_AMX=1)
  endif()
  # The AVX-512 headers of GCC 12 read a variable before it is set, on purpose (GCC bug 105593).
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND SOMA_ISA_FLAGS_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
    list(APPEND SOMA_ISA_FLAGS_avx512_bf16 -Wno-uninitialized -Wno-maybe-uninitialized)
    list(APPEND SOMA_ISA_FLAGS_amx -Wno-uninitialized -Wno-maybe-uninitialized)
    # Scheduling before registers are given out loads all elements of A at once, and spills sums.
    list(APPEND SOMA_ISA_FLAGS_neon -fno-schedule-insns)
    list(APPEND SOMA_ISA_FLAGS_neon_bf16 -fno-schedule-insns)
  endif()
  foreach(level IN LISTS levels)
    set(source ${SOMA_SRC}/kernels/isa_${level}.cpp)
    target_sources(${target} PRIVATE ${source})
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${SOMA_ISA_FLAGS_${level}}")
    string(TOUPPER ${level} upper)
    target_compile_definitions(${target} PRIVATE SOMA_HAVE_${upper}=1)
  endforeach()
endfunction()
