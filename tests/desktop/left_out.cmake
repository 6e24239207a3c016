# Configures the project where pkg-config knows neither GLFW nor Dear ImGui: the desktop program must be left out and
# said to be, and asking for it must fail.
file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR}/pkgconfig)
foreach(package IN ITEMS minizip zlib)
  execute_process(COMMAND ${PKG_CONFIG} --variable=pcfiledir ${package} OUTPUT_VARIABLE folder
                  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  file(COPY ${folder}/${package}.pc DESTINATION ${WORK_DIR}/pkgconfig)
endforeach()
unset(ENV{PKG_CONFIG_PATH})
set(ENV{PKG_CONFIG_LIBDIR} ${WORK_DIR}/pkgconfig)

foreach(wanted IN ITEMS AUTO ON)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S ${SOURCE_DIR} -B ${WORK_DIR}/${wanted} -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${CXX}
            -DTURBOESM_DEPS_DIR=${DEPS_DIR} -DTURBOESM_CUDA_MODULE=OFF -DTURBOESM_TESTS=OFF -DTURBOESM_DESKTOP=${wanted}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  if(wanted STREQUAL "AUTO" AND NOT (result EQUAL 0 AND output MATCHES "turboesm-desktop is left out: GLFW 3.3"))
    message(FATAL_ERROR "without GLFW the program is to be left out, and that to be said: ${result}: ${output}")
  elseif(wanted STREQUAL "ON" AND (result EQUAL 0 OR NOT output MATCHES "TURBOESM_DESKTOP=ON, but GLFW 3.3"))
    message(FATAL_ERROR "asking for what cannot be built is to fail: ${result}: ${output}")
  endif()
endforeach()
