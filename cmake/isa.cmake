# The one table that says which compile flags an ISA level gets. Nowhere else says -mavx...
# A level is src/cpp/kernels/isa_<level>.cpp; levels whose instruction set the target lacks are left out, and the
# dispatcher learns which were built from the SOMA_HAVE_<LEVEL> definitions.

set(SOMA_ISA_FLAGS_scalar "")
set(SOMA_ISA_FLAGS_sse "-msse2")
set(SOMA_ISA_FLAGS_avx2 "-mavx2;-mfma")
set(SOMA_ISA_FLAGS_avx512 "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mfma;-mprefer-vector-width=512")
set(SOMA_ISA_FLAGS_avx512_bf16 "${SOMA_ISA_FLAGS_avx512};-mavx512bf16")
set(SOMA_ISA_FLAGS_amx "${SOMA_ISA_FLAGS_avx512_bf16};-mamx-tile;-mamx-bf16")
if(MSVC)
  set(SOMA_ISA_FLAGS_sse "")
  set(SOMA_ISA_FLAGS_avx2 "/arch:AVX2")
  set(SOMA_ISA_FLAGS_avx512 "/arch:AVX512")
endif()

# What the environment's flags (-march=native) and the compiler's defaults bring is taken back first, explicit -mavx512f
# and the like too: without SSE3 there is nothing that builds on it. Every build runs on every x86-64 processor then.
set(SOMA_X86_RESET -march=x86-64 -mtune=generic -mprefer-vector-width=none -mno-sse3 -mno-popcnt -mno-lzcnt -mno-bmi
  -mno-bmi2 -mno-tbm -mno-movbe -mno-adx -mno-prfchw)

function(soma_reset_isa target)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT MSVC)
    target_compile_options(${target} PRIVATE ${SOMA_X86_RESET})
  endif()
endfunction()

option(SOMA_EMULATE_AMX "The amx level on tiles in memory instead of AMX's, to test it on the machine that builds it" OFF)

function(soma_add_isa_kernels target)
  soma_reset_isa(${target})  # a level's own flags follow
  set(levels scalar)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    list(APPEND levels sse avx2 avx512)
    if(NOT MSVC)
      list(APPEND levels avx512_bf16)
      if(CMAKE_SYSTEM_NAME STREQUAL "Linux")  # elsewhere nobody has tried how the system gives leave to use tiles
        list(APPEND levels amx)
      endif()
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
  # GCC 12's own AVX-512 headers read a variable before it is set, on purpose (GCC bug 105593): not our warning.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND SOMA_ISA_FLAGS_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
    list(APPEND SOMA_ISA_FLAGS_avx512_bf16 -Wno-uninitialized -Wno-maybe-uninitialized)
    list(APPEND SOMA_ISA_FLAGS_amx -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  foreach(level IN LISTS levels)
    set(source ${SOMA_SRC}/kernels/isa_${level}.cpp)
    target_sources(${target} PRIVATE ${source})
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${SOMA_ISA_FLAGS_${level}}")
    string(TOUPPER ${level} upper)
    target_compile_definitions(${target} PRIVATE SOMA_HAVE_${upper}=1)
  endforeach()
endfunction()
