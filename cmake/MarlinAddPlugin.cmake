# marlin_add_plugin(NAME SOURCE... [LIBS TARGET...]): the plugin NAME, a library libNAME.so that programs load at run time.
#
# It sees marlin::sdk; LIBS adds more, such as marlin::checkpointers. It is C++20, and shows nothing but its descriptor (see
# MARLIN_PLUGIN in marlin/sdk/plugin.h). `cmake --install` puts it into lib/marlin/plugins, where programs of the same prefix
# find it by its name; anywhere else they find it by its path, or with --plugin_path.
#
# NAME: letters, digits, _ and -; not one of what is built in.
include_guard(GLOBAL)

# So that what would be refused at run time is not built.
function(_marlin_check_plugin_name name)
  if(NOT name MATCHES "^[A-Za-z0-9_-]+$")
    message(FATAL_ERROR "marlin_add_plugin(${name}): a plugin's name consists of letters, digits, _ and -")
  endif()
  set(checkpointer default)   # as built_in_names() of marlin/core/plugin_host.h has them
  set(backend sp sp-amp ddp ddp-amp)
  set(writer stdout jsonl)
  set(device auto cpu)
  foreach(kind checkpointer backend writer device)
    if(";${${kind}};" MATCHES ";${name};")
      message(FATAL_ERROR "marlin_add_plugin(${name}): '${name}' is the name of a built-in ${kind}; give the plugin another one")
    endif()
  endforeach()
endfunction()

function(marlin_add_plugin name)
  _marlin_check_plugin_name("${name}")
  cmake_parse_arguments(arg "" "" "LIBS" ${ARGN})
  if(NOT arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "marlin_add_plugin(${name}): no source file is given")
  endif()
  include(GNUInstallDirs)
  add_library(${name} MODULE ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE marlin::sdk ${arg_LIBS})
  if(MARLIN_PLUGIN_OUTPUT_DIR)   # one of libmarlin's own
    marlin_defaults(${name} PCH tensors)
    set_target_properties(${name} PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${MARLIN_PLUGIN_OUTPUT_DIR}")
  endif()
  target_compile_features(${name} PRIVATE cxx_std_20)
  set_target_properties(${name} PROPERTIES
    PREFIX "lib" SUFFIX ".so" CXX_EXTENSIONS OFF CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
    INSTALL_RPATH "$ORIGIN;$ORIGIN/../.." INSTALL_RPATH_USE_LINK_PATH ON)
  if(MARLIN_INSTALL OR NOT MARLIN_PLUGIN_OUTPUT_DIR)
    install(TARGETS ${name} LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}/marlin/plugins")
  endif()
endfunction()
