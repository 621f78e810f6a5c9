# The CMake package `marlin`: what find_package(marlin) reads, beside the libraries and headers that marlin_install() installs.
include(CMakePackageConfigHelpers)
set(_marlin_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/marlin")
configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/marlinConfig.cmake.in" "${PROJECT_BINARY_DIR}/marlinConfig.cmake"
  INSTALL_DESTINATION "${_marlin_package_dir}" NO_SET_AND_CHECK_MACRO)
# Before 1.0 the minor version may change the interface.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/marlinConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(EXPORT marlinTargets NAMESPACE marlin:: DESTINATION "${_marlin_package_dir}")
install(FILES "${PROJECT_BINARY_DIR}/marlinConfig.cmake" "${PROJECT_BINARY_DIR}/marlinConfigVersion.cmake"
  "${CMAKE_CURRENT_LIST_DIR}/MarlinLibTorch.cmake" "${CMAKE_CURRENT_LIST_DIR}/MarlinAddPlugin.cmake"
  DESTINATION "${_marlin_package_dir}")
