# The CMake package `marlin`: what find_package(marlin) reads, beside the libraries and headers that marlin_install() installs. The
# build folder holds the same package over what lies there, so that a project can be built against libmarlin without an install.
include(CMakePackageConfigHelpers)
set(_marlin_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/marlin")
configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/marlinConfig.cmake.in" "${PROJECT_BINARY_DIR}/marlinConfig.cmake"
  INSTALL_DESTINATION "${_marlin_package_dir}" NO_SET_AND_CHECK_MACRO)
# Before 1.0 the minor version may change the interface.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/marlinConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
foreach(_marlin_part MarlinLibTorch MarlinAddPlugin)
  configure_file("${CMAKE_CURRENT_LIST_DIR}/${_marlin_part}.cmake" "${PROJECT_BINARY_DIR}/${_marlin_part}.cmake" COPYONLY)
endforeach()
export(EXPORT marlinTargets NAMESPACE marlin:: FILE "${PROJECT_BINARY_DIR}/marlinTargets.cmake")
install(EXPORT marlinTargets NAMESPACE marlin:: DESTINATION "${_marlin_package_dir}")
install(FILES "${PROJECT_BINARY_DIR}/marlinConfig.cmake" "${PROJECT_BINARY_DIR}/marlinConfigVersion.cmake"
  "${PROJECT_BINARY_DIR}/MarlinLibTorch.cmake" "${PROJECT_BINARY_DIR}/MarlinAddPlugin.cmake"
  DESTINATION "${_marlin_package_dir}")
