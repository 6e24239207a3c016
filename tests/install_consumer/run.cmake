# Installs the build into a fresh prefix, runs the program from there, and builds and runs a consumer of the package.
set(prefix ${WORK_DIR}/prefix)
file(REMOVE_RECURSE ${WORK_DIR})

function(run)
  execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "failed (${result}): ${ARGN}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${prefix})
run(${prefix}/bin/turboesm --version)
if(NOT output MATCHES "${VERSION}")
  message(FATAL_ERROR "the installed program's version is not ${VERSION} but: ${output}")
endif()
foreach(file IN ITEMS config.json vocab.txt model.safetensors)
  if(NOT EXISTS ${prefix}/share/turboesm/models/swissprot_t8_14M/${file})
    message(FATAL_ERROR "the default model's ${file} was not installed")
  endif()
endforeach()

run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${WORK_DIR}/build -G ${GENERATOR} -DCMAKE_PREFIX_PATH=${prefix}
    -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_CXX_FLAGS=${CXX_FLAGS})
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build)
run(${WORK_DIR}/build/consumer)
