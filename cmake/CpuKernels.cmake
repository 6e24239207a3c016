# Compiles the kernels of runtime/cpu once for each instruction set and adds the objects to `target`; the program picks at
# run time. Those of the KV cache must not contract products and sums, or they would pack other bits than GPUs do.
# TURBOESM_CPU_VARIANT is the variant's name, for its namespace. cpu_variants.inc lists TURBOESM_CPU_VARIANT_ENTRY(name)
# lines, widest first; TURBOESM_CPU_VARIANTS the names.
set(TURBOESM_CPU_KERNELS attention contacts elements kernels kv_kernels products rows sample)
list(TRANSFORM TURBOESM_CPU_KERNELS REPLACE "(.+)" "${PROJECT_SOURCE_DIR}/runtime/cpu/\\1.cpp")

function(turboesm_add_cpu_kernels target)
  set(variants baseline)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(variants amx_bf16 avx512_bf16 avx512 avx2 baseline)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "MSVC")
    message(FATAL_ERROR "the CPU kernels are written with the vector types of GCC and Clang: use clang-cl")
  elseif(MSVC)
    set(optimize /O2 -ffp-contract=fast)
    set(no_contraction -ffp-contract=off)
  else()
    set(optimize -O3 -fno-math-errno -ffp-contract=fast)
    set(no_contraction -ffp-contract=off)
  endif()
  set(avx2_flags -mavx2 -mfma -mf16c -mbmi2)
  # GCC 12 takes the deliberately undefined operands inside its own AVX-512 intrinsics for a fault (GCC bug 105593).
  set(avx512_flags ${avx2_flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl
                   $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized -Wno-uninitialized>)
  set(avx512_bf16_flags ${avx512_flags} -mavx512bf16)
  set(amx_bf16_flags ${avx512_bf16_flags} -mamx-tile -mamx-bf16)

  set_source_files_properties(${PROJECT_SOURCE_DIR}/runtime/cpu/kv_kernels.cpp
                              PROPERTIES COMPILE_OPTIONS ${no_contraction})

  set(entries "")
  foreach(variant IN LISTS variants)
    set(object turboesm_cpu_kernels_${variant})
    add_library(${object} OBJECT ${TURBOESM_CPU_KERNELS})
    target_compile_options(${object} PRIVATE ${optimize} ${${variant}_flags})
    target_compile_definitions(${object} PRIVATE TURBOESM_CPU_VARIANT=${variant})
    target_link_libraries(${object} PRIVATE turboesm_compile_options ${TURBOESM_FMT})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${object}>)
    string(APPEND entries "TURBOESM_CPU_VARIANT_ENTRY(${variant})\n")
  endforeach()
  file(CONFIGURE OUTPUT ${TURBOESM_GENERATED_DIR}/cpu_variants.inc CONTENT "${entries}" @ONLY)
  set(TURBOESM_CPU_VARIANTS ${variants} PARENT_SCOPE)
endfunction()
