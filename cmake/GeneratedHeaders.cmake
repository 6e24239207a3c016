# version.h: the version, and the git commit where there is one (a tarball has none). Configured again after a commit,
# written only when it changes, so that a commit recompiles just the files that include it.
set(TURBOESM_COMMIT unknown)
find_package(Git QUIET)
if(Git_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} rev-parse --show-toplevel --git-path logs/HEAD --short=12 HEAD
                  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
                  OUTPUT_VARIABLE git_output ERROR_QUIET RESULT_VARIABLE git_result)
  string(REGEX MATCH "^([^\n]+)\n([^\n]+)\n([0-9a-f]+)\n" git_match "${git_output}")
  # A tarball unpacked inside someone else's repository must not take that repository's commit for its own.
  if(git_result EQUAL 0 AND git_match AND CMAKE_MATCH_1 STREQUAL PROJECT_SOURCE_DIR)
    set(TURBOESM_COMMIT ${CMAKE_MATCH_3})
    get_filename_component(git_log ${CMAKE_MATCH_2} ABSOLUTE BASE_DIR ${PROJECT_SOURCE_DIR})
    if(EXISTS ${git_log})
      set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${git_log})
    endif()
  endif()
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/version.h.in ${TURBOESM_GENERATED_DIR}/version.h @ONLY)

# backends.inc: one TURBOESM_BACKEND(name) line for each back end that is built; runtime/registry.cpp includes it.
if(NOT "cpu" IN_LIST TURBOESM_BACKENDS)
  message(FATAL_ERROR "TURBOESM_BACKENDS is '${TURBOESM_BACKENDS}': it must contain cpu")
endif()
set(backend_lines "")
foreach(backend IN LISTS TURBOESM_BACKENDS)
  if(NOT backend MATCHES "^(cpu|vulkan|cuda)$")
    message(FATAL_ERROR "TURBOESM_BACKENDS names '${backend}': only cpu, vulkan and cuda exist")
  endif()
  string(APPEND backend_lines "TURBOESM_BACKEND(${backend})\n")
endforeach()
file(CONFIGURE OUTPUT ${TURBOESM_GENERATED_DIR}/backends.inc CONTENT "${backend_lines}" @ONLY)
