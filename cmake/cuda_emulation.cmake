# The kernels of src/cpp/ops/cuda as C++, and the emulation that runs them. -fsanitize=thread makes the compiler tell of
# every access to memory; the emulation is who is told, so no sanitizer is linked.
set(SOMA_CUDA_TESTS ${CMAKE_CURRENT_SOURCE_DIR}/tests/cuda)
file(GLOB SOMA_EMULATION_SOURCES CONFIGURE_DEPENDS ${SOMA_CUDA_TESTS}/emulation/*.cpp)
file(GLOB SOMA_CUDA_KERNELS CONFIGURE_DEPENDS ${SOMA_SRC}/ops/cuda/*.cu)

# A library of its own that keeps to its own copies of the STL: those of the kernels would tell of their accesses too.
add_library(soma_cuda_emulation SHARED ${SOMA_EMULATION_SOURCES})
set_target_properties(soma_cuda_emulation PROPERTIES CXX_VISIBILITY_PRESET default)
target_compile_options(soma_cuda_emulation PRIVATE -Wall -Wextra -g1 -ffp-contract=off $<$<BOOL:${SOMA_WERROR}>:-Werror>)
target_link_options(soma_cuda_emulation PRIVATE -Wl,-Bsymbolic)
target_link_libraries(soma_cuda_emulation PUBLIC ${CMAKE_DL_LIBS})
target_include_directories(soma_cuda_emulation PUBLIC ${SOMA_CUDA_TESTS}/emulation)

function(soma_emulate target)
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
  target_sources(${target} PRIVATE ${ARGN})
  target_include_directories(${target} PRIVATE ${SOMA_SRC})
  # As nvcc does with --fmad=false: a*b+c has two roundings unless a kernel says fmaf.
  target_compile_options(${target} PRIVATE -Wall -Wextra -O1 -g1 -fPIC -ffp-contract=off -fno-math-errno -fsanitize=thread
    --param=tsan-instrument-func-entry-exit=0 $<$<BOOL:${SOMA_WERROR}>:-Werror>)
  target_link_libraries(${target} PRIVATE soma_cuda_emulation)
endfunction()

add_executable(soma_cuda_mistakes)
soma_emulate(soma_cuda_mistakes ${SOMA_CUDA_TESTS}/mistakes.cu ${SOMA_SRC}/ops/cuda/recording.cpp)
add_library(soma_cuda_emulated MODULE)
soma_emulate(soma_cuda_emulated ${SOMA_CUDA_KERNELS} ${SOMA_CUDA_TESTS}/exports.cu)
# The host's part as it is: the core opens this library as it opens the one for GPUs.
file(GLOB SOMA_CUDA_HOST CONFIGURE_DEPENDS ${SOMA_SRC}/ops/cuda/*.cpp)
add_library(soma_cuda_host OBJECT ${SOMA_CUDA_HOST} ${SOMA_SRC}/ops/ops.cpp ${SOMA_SRC}/base/arena.cpp)
target_include_directories(soma_cuda_host PRIVATE ${SOMA_SRC})
target_compile_options(soma_cuda_host PRIVATE -Wall -Wextra $<$<BOOL:${SOMA_WERROR}>:-Werror>)
target_link_libraries(soma_cuda_host PRIVATE soma_cuda_emulation)
target_sources(soma_cuda_emulated PRIVATE $<TARGET_OBJECTS:soma_cuda_host>)
add_library(soma_fake_cublas MODULE)
soma_emulate(soma_fake_cublas ${SOMA_CUDA_TESTS}/fake_cublas.cu)
add_custom_target(soma_cuda_tests DEPENDS soma_cuda_mistakes soma_cuda_emulated soma_fake_cublas)
