# turboesm_compile_options: what every translation unit of ours is compiled with; never exported to consumers.
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

add_library(turboesm_compile_options INTERFACE)
target_compile_features(turboesm_compile_options INTERFACE cxx_std_20)
target_include_directories(turboesm_compile_options INTERFACE ${PROJECT_SOURCE_DIR} ${TURBOESM_GENERATED_DIR})
if(MSVC)
  target_compile_options(turboesm_compile_options INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:/W4;/utf-8;$<$<BOOL:${TURBOESM_WERROR}>:/WX>>")
  target_compile_definitions(turboesm_compile_options INTERFACE NOMINMAX WIN32_LEAN_AND_MEAN)
else()
  target_compile_options(turboesm_compile_options INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;$<$<BOOL:${TURBOESM_WERROR}>:-Werror>>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra;$<$<BOOL:${TURBOESM_WERROR}>:-Werror=all-warnings>>")
endif()

if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  add_link_options(LINKER:--as-needed)
endif()
if(TURBOESM_PORTABLE AND NOT MSVC)
  add_link_options(-static-libgcc -static-libstdc++)
endif()
