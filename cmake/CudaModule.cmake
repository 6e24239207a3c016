# The CUDA back end is two things: the program's side (runtime/cuda_backend.cpp), which is always the same and links no
# CUDA, and the module that it loads, libturboesm_cuda, built where there is a CUDA toolkit.

# cuda_abi.h: a digest of everything that both sides must see alike, and where an installed module lies.
set(TURBOESM_MODULE_DIR ${CMAKE_INSTALL_LIBDIR}/turboesm)
set(abi_headers
  runtime/backend.h runtime/dtype.h runtime/error.h runtime/kv_operations.h runtime/memory.h runtime/operations.h
  runtime/tensor.h runtime/cuda/buffer.h runtime/cuda/module.h shaders/include/kv_layout.h)
set(abi_text "${CMAKE_CXX_COMPILER_ID} ${CMAKE_SYSTEM_NAME} ${CMAKE_SIZEOF_VOID_P}")
foreach(header IN LISTS abi_headers)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${header})
  file(SHA256 ${PROJECT_SOURCE_DIR}/${header} digest)
  string(APPEND abi_text " ${digest}")
endforeach()
string(SHA256 abi_digest "${abi_text}")
string(SUBSTRING ${abi_digest} 0 16 TURBOESM_CUDA_ABI)
configure_file(${CMAKE_CURRENT_LIST_DIR}/cuda_abi.h.in ${TURBOESM_GENERATED_DIR}/cuda_abi.h @ONLY)

set(TURBOESM_CUDA_MODULE AUTO CACHE STRING "Build the CUDA module: AUTO (where there is a toolkit), ON or OFF")
set(oldest_cuda 12.0)
set(build_cuda_module OFF)
if(TURBOESM_CUDA_MODULE AND "cuda" IN_LIST TURBOESM_BACKENDS)
  if(TURBOESM_PORTABLE)
    set(CMAKE_FIND_LIBRARY_SUFFIXES .a .so)  # cuBLASLt is a shared library
  endif()
  find_package(CUDAToolkit ${oldest_cuda} QUIET)
  if(CUDAToolkit_FOUND AND TARGET CUDA::cublasLt)
    if(NOT CMAKE_CUDA_COMPILER AND EXISTS ${CUDAToolkit_NVCC_EXECUTABLE})
      set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
    endif()
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      set(build_cuda_module ON)
    endif()
  endif()
  if(NOT build_cuda_module)
    if(NOT TURBOESM_CUDA_MODULE STREQUAL "AUTO")
      message(FATAL_ERROR "TURBOESM_CUDA_MODULE is ${TURBOESM_CUDA_MODULE}, but no CUDA toolkit ${oldest_cuda} or later "
                          "with nvcc and cuBLASLt was found")
    endif()
    message(STATUS "No CUDA toolkit ${oldest_cuda} or later: turboesm is built without its CUDA module")
  endif()
endif()

set(TURBOESM_CUDA_ARCHITECTURES AUTO CACHE STRING
    "Architectures of the CUDA module's kernels: ALL of a release, AUTO (those of this machine's GPUs), or a list")

# Sets `result` to a list for CMAKE_CUDA_ARCHITECTURES.
function(turboesm_cuda_architectures result)
  set(architectures ${TURBOESM_CUDA_ARCHITECTURES})
  if(architectures STREQUAL "AUTO")
    set(architectures 90a-real 80-virtual)  # no GPU here: something that most run, without the long time of ALL
    find_program(TURBOESM_NVIDIA_SMI nvidia-smi)
    if(TURBOESM_NVIDIA_SMI)
      execute_process(COMMAND ${TURBOESM_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                      OUTPUT_VARIABLE capabilities ERROR_QUIET RESULT_VARIABLE failed)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${capabilities}")
      if(NOT failed AND capabilities)
        list(TRANSFORM capabilities REPLACE "\\." "")
        list(TRANSFORM capabilities REPLACE "^90$" "90a")  # with Hopper's own instructions
        list(TRANSFORM capabilities APPEND "-real")
        list(REMOVE_DUPLICATES capabilities)
        set(architectures ${capabilities})
      endif()
    endif()
  endif()
  if(architectures STREQUAL "ALL")
    set(architectures 75-real 80-real 86-real 89-real 90a-real)
    if(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12.8)
      list(APPEND architectures 100-real 120)  # the last with PTX for what comes after
    else()
      list(APPEND architectures 90-virtual)
    endif()
  endif()
  set(${result} ${architectures} PARENT_SCOPE)
endfunction()

# A macro, for languages must be enabled in the scope of the whole project.
macro(turboesm_add_cuda_module)
  turboesm_cuda_architectures(CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  enable_language(CUDA)

  file(GLOB cuda_sources CONFIGURE_DEPENDS runtime/cuda/*.cpp runtime/cuda/*.cu)
  add_library(turboesm_cuda MODULE ${cuda_sources} runtime/dtype.cpp runtime/error.cpp runtime/kv_operations.cpp
                                    runtime/memory.cpp runtime/operations.cpp)
  target_compile_features(turboesm_cuda PRIVATE cxx_std_20)
  # CMake 3.25 does not know that nvcc has this standard.
  target_compile_options(turboesm_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  target_link_libraries(turboesm_cuda PRIVATE turboesm_compile_options fmt::fmt-header-only CUDA::cudart_static
                                              CUDA::cublasLt)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    target_link_options(turboesm_cuda PRIVATE LINKER:-z,defs)
  endif()
  set_target_properties(turboesm_cuda PROPERTIES
    CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_RUNTIME_OUTPUT_DIRECTORY}
    INSTALL_RPATH_USE_LINK_PATH ON)  # cuBLASLt is where the toolkit is
  # Packed bits are decided by products that are rounded before they are added.
  set_source_files_properties(
    ${PROJECT_SOURCE_DIR}/runtime/cuda/kv_append.cu ${PROJECT_SOURCE_DIR}/runtime/cuda/kv_step.cu
    PROPERTIES COMPILE_OPTIONS --fmad=false)
  install(TARGETS turboesm_cuda LIBRARY DESTINATION ${TURBOESM_MODULE_DIR})
endmacro()
