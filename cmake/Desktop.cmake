# turboesm-desktop, where GLFW and Dear ImGui are. What it shows and does, apart from the window, is the library
# turboesm_desktop, which the tests link, too.
set(TURBOESM_DESKTOP AUTO CACHE STRING "Build turboesm-desktop: AUTO (where GLFW and Dear ImGui are), ON or OFF")
set(build_desktop OFF)
if(TURBOESM_DESKTOP)
  pkg_check_modules(GLFW QUIET IMPORTED_TARGET glfw3>=3.3)
  pkg_check_modules(IMGUI QUIET IMPORTED_TARGET imgui>=1.86)
  set(why_no_desktop "")
  if(NOT "vulkan" IN_LIST TURBOESM_BACKENDS)
    set(why_no_desktop "it draws with Vulkan, which is not among TURBOESM_BACKENDS")
  elseif(TURBOESM_PORTABLE)
    set(why_no_desktop "a portable program carries what it needs, and a window's libraries are the system's")
  elseif(NOT TARGET PkgConfig::GLFW)
    set(why_no_desktop "GLFW 3.3 or newer was not found (libglfw3-dev)")
  elseif(NOT TARGET PkgConfig::IMGUI)
    set(why_no_desktop "Dear ImGui 1.86 or newer was not found (libimgui-dev)")
  else()
    set(build_desktop ON)
  endif()
  if(why_no_desktop AND NOT TURBOESM_DESKTOP STREQUAL "AUTO")
    message(FATAL_ERROR "turboesm-desktop was asked for with TURBOESM_DESKTOP=${TURBOESM_DESKTOP}, but "
                        "${why_no_desktop}")
  elseif(why_no_desktop)
    message(STATUS "turboesm-desktop is left out: ${why_no_desktop}")
  endif()
endif()

function(turboesm_add_desktop)
  set(folder ${PROJECT_SOURCE_DIR}/apps/desktop)
  set(windowless choices colours controller heat_map image plan_view script state worker)
  list(TRANSFORM windowless PREPEND ${folder}/)
  list(TRANSFORM windowless APPEND .cpp)
  add_library(turboesm_desktop STATIC ${windowless})
  target_link_libraries(turboesm_desktop PUBLIC turboesm_core turboesm_compile_options nlohmann_json::nlohmann_json
                                         PRIVATE ZLIB::ZLIB Threads::Threads)

  # ui.vert -> ui_vert.h, an array of its words; and ui_vert.spv, which the tests check.
  set(shader_dir ${TURBOESM_GENERATED_DIR}/desktop)
  file(MAKE_DIRECTORY ${shader_dir})
  foreach(stage IN ITEMS vert frag)
    set(source ${folder}/shaders/ui.${stage})
    set(base ${shader_dir}/ui_${stage})
    set(command ${TURBOESM_GLSLANG} --quiet -V --target-env vulkan1.1 -g0)
    add_custom_command(
      OUTPUT ${base}.h ${base}.spv
      COMMAND ${command} --vn ui_${stage} -o ${base}.h ${source}
      COMMAND ${command} -o ${base}.spv ${source}
      DEPENDS ${source}
      COMMENT "Compiling shader ui.${stage}"
      VERBATIM)
    list(APPEND headers ${base}.h)
    list(APPEND modules ${base}.spv)
  endforeach()

  file(GLOB sources CONFIGURE_DEPENDS ${folder}/*.cpp)
  list(REMOVE_ITEM sources ${windowless})
  add_executable(turboesm-desktop ${sources} ${headers})
  target_include_directories(turboesm-desktop PRIVATE ${shader_dir})
  target_link_libraries(turboesm-desktop PRIVATE turboesm_desktop turboesm_vulkan_headers CLI11::CLI11
                                                 PkgConfig::IMGUI PkgConfig::GLFW)
  set_property(TARGET turboesm-desktop PROPERTY TURBOESM_MODULES "${modules}")
endfunction()
