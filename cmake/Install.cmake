# bin/turboesm, its default model, the headers and the library with a package config: find_package(turboesm) gives
# turboesm::turboesm.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/turboesm)

install(TARGETS turboesm RUNTIME)
if(TARGET turboesm-desktop)
  install(TARGETS turboesm-desktop RUNTIME)
endif()
install(TARGETS turboesm_core EXPORT turboesmTargets ARCHIVE)
install(DIRECTORY model/pretrained/ DESTINATION ${CMAKE_INSTALL_DATADIR}/turboesm/models)
foreach(folder IN ITEMS runtime model)
  install(DIRECTORY ${folder}/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/turboesm/${folder}
          FILES_MATCHING PATTERN "*.h"
          PATTERN pretrained EXCLUDE PATTERN training EXCLUDE PATTERN cpu EXCLUDE PATTERN vulkan EXCLUDE PATTERN cuda EXCLUDE)
endforeach()
# Shared with the shaders: runtime/kv_operations.h includes one.
install(FILES shaders/include/kv_layout.h shaders/include/kv_scale.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/turboesm/shaders/include)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

install(EXPORT turboesmTargets NAMESPACE turboesm:: DESTINATION ${package_dir})
configure_package_config_file(cmake/turboesmConfig.cmake.in ${PROJECT_BINARY_DIR}/turboesmConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/turboesmConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/turboesmConfig.cmake ${PROJECT_BINARY_DIR}/turboesmConfigVersion.cmake
        DESTINATION ${package_dir})
