# The one table that says which compile flags an ISA level gets. Nowhere else says -mavx...
# A level is src/cpp/kernels/isa_<level>.cpp; levels whose instruction set the target lacks are left out, and the
# dispatcher learns which were built from the SOMA_HAVE_<LEVEL> definitions.

set(SOMA_ISA_FLAGS_scalar "")
set(SOMA_ISA_FLAGS_sse "-msse2")
set(SOMA_ISA_FLAGS_avx2 "-mavx2;-mfma")
set(SOMA_ISA_FLAGS_avx512 "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mfma;-mprefer-vector-width=512")
if(MSVC)
  set(SOMA_ISA_FLAGS_sse "")
  set(SOMA_ISA_FLAGS_avx2 "/arch:AVX2")
  set(SOMA_ISA_FLAGS_avx512 "/arch:AVX512")
endif()

function(soma_add_isa_kernels target)
  set(levels scalar)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    list(APPEND levels sse avx2 avx512)
  endif()
  # GCC 12's own AVX-512 headers read a variable before it is set, on purpose (GCC bug 105593): not our warning.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND SOMA_ISA_FLAGS_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  foreach(level IN LISTS levels)
    set(source ${SOMA_SRC}/kernels/isa_${level}.cpp)
    target_sources(${target} PRIVATE ${source})
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${SOMA_ISA_FLAGS_${level}}")
    string(TOUPPER ${level} upper)
    target_compile_definitions(${target} PRIVATE SOMA_HAVE_${upper}=1)
  endforeach()
endfunction()
