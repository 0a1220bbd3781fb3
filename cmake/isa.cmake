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

# The architecture that is compiled for. On macOS and Windows it may be another one than the machine's.
set(SOMA_TARGET "${CMAKE_SYSTEM_PROCESSOR}")
if(MSVC)
  set(SOMA_TARGET "${MSVC_CXX_ARCHITECTURE_ID}")
elseif(APPLE AND CMAKE_OSX_ARCHITECTURES)
  set(SOMA_TARGET "${CMAKE_OSX_ARCHITECTURES}")
endif()
if(SOMA_TARGET MATCHES ";")
  message(FATAL_ERROR "cannot build for '${SOMA_TARGET}' at once: name one architecture, as in ARCHFLAGS='-arch arm64'")
endif()

# The levels that the target can have, and SOMA_RESET: first the flags of the environment (-march=native) and the
# compiler's defaults are undone, so that every build runs on every processor of its architecture. -mno-sse3 also undoes
# explicit -mavx512f and the like, which need SSE3.
set(SOMA_LEVELS scalar)
set(SOMA_RESET "")
if(SOMA_TARGET MATCHES "^(x86_64|AMD64|amd64|x64)$")
  list(APPEND SOMA_LEVELS sse avx2 avx512)
  if(NOT MSVC)
    set(SOMA_RESET -march=x86-64 -mtune=generic -mprefer-vector-width=none -mno-sse3 -mno-popcnt -mno-lzcnt -mno-bmi
      -mno-bmi2 -mno-tbm -mno-movbe -mno-adx -mno-prfchw)
    list(APPEND SOMA_LEVELS avx512_bf16)
  endif()
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")  # on other systems, the permission to use tiles has not been tried
    list(APPEND SOMA_LEVELS amx)
  endif()
elseif(SOMA_TARGET MATCHES "^(aarch64|arm64|ARM64)$")
  list(APPEND SOMA_LEVELS neon)
  if(NOT MSVC)
    list(APPEND SOMA_LEVELS neon_bf16)
  endif()
  if(NOT MSVC AND NOT APPLE)  # Apple's compiler already aims at the oldest of its processors
    set(SOMA_RESET -march=armv8-a -mtune=generic)
  endif()
endif()

function(soma_reset_isa target)
  target_compile_options(${target} PRIVATE ${SOMA_RESET})
endfunction()

option(SOMA_EMULATE_AMX "Emulate the tiles of AMX in memory, to test the amx level on any processor" OFF)

function(soma_add_isa_kernels target)
  soma_reset_isa(${target})  # the flags of a level follow
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
  foreach(level IN LISTS SOMA_LEVELS)
    set(source ${SOMA_SRC}/kernels/isa_${level}.cpp)
    target_sources(${target} PRIVATE ${source})
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${SOMA_ISA_FLAGS_${level}}")
    string(TOUPPER ${level} upper)
    target_compile_definitions(${target} PRIVATE SOMA_HAVE_${upper}=1)
  endforeach()
endfunction()
