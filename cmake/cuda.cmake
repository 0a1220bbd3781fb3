# The library for GPUs, which the core opens at run time. Its kernels are compiled by nvcc: of a toolkit, or of the wheels
# in requirements-cuda.txt in the Python that builds. Nothing of it needs a GPU.
if(NOT CMAKE_CUDA_COMPILER AND "$ENV{CUDACXX}" STREQUAL "")
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
  execute_process(COMMAND ${Python_EXECUTABLE} -c
    "import importlib.util as u; s = u.find_spec('nvidia.cu13'); print(list(s.submodule_search_locations)[0])"
    OUTPUT_VARIABLE SOMA_CUDA_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT EXISTS "${SOMA_CUDA_ROOT}/bin/nvcc")
    message(FATAL_ERROR "no nvcc: run pip install -r cmake/requirements-cuda.txt, or say where it is in CUDACXX")
  endif()
  set(CMAKE_CUDA_COMPILER ${SOMA_CUDA_ROOT}/bin/nvcc)
  set(CMAKE_CUDA_FLAGS_INIT "-L${SOMA_CUDA_ROOT}/lib")  # nvcc looks in lib64, which the wheels lack
endif()
# 90a has wgmma and nothing else has; what drivers compile for later chips is 120-virtual, a part of 120.
if(NOT CMAKE_CUDA_ARCHITECTURES AND "$ENV{CUDAARCHS}" STREQUAL "")
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90a-real 100-real 120)
endif()
enable_language(CUDA)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.25.2 knows no C++20 for nvcc
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)

file(GLOB SOMA_CUDA_SOURCES CONFIGURE_DEPENDS ${SOMA_SRC}/ops/cuda/*.cu ${SOMA_SRC}/ops/cuda/*.cpp)
add_library(soma_cuda MODULE ${SOMA_CUDA_SOURCES} ${SOMA_SRC}/ops/ops.cpp ${SOMA_SRC}/base/arena.cpp)
target_include_directories(soma_cuda PRIVATE ${SOMA_SRC} ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
# Where pip puts cuBLASLt, which the library looks for.
set_target_properties(soma_cuda PROPERTIES INSTALL_RPATH "$ORIGIN/../nvidia/cu13/lib" BUILD_WITH_INSTALL_RPATH ON)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL x86_64)
  include(cmake/old_glibc.cmake)
  soma_old_glibc(soma_cuda)
endif()
target_link_libraries(soma_cuda PRIVATE ${CMAKE_DL_LIBS})
# Its only name is soma_open_backend: those of CUDA's runtime stay its own.
target_link_options(soma_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,--no-undefined)
install(TARGETS soma_cuda LIBRARY DESTINATION soma_native_cuda13 COMPONENT cuda)
# One rule as in the core: a*b+c has two roundings unless a kernel says fmaf. A kernel that spills registers is an error.
target_compile_options(soma_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -ffp-contract=off $<$<BOOL:${SOMA_WERROR}>:-Werror>>
  $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false -Xcompiler=-Wall,-Wextra,-ffp-contract=off --compress-mode=size
    -Xptxas=--warn-on-spills,--warn-on-local-memory-usage --threads=2
    $<$<BOOL:${SOMA_WERROR}>:-Werror=all-warnings -Xptxas=-Werror>>)
