# Imported targets over LibTorch's CPU libraries: marlin::libtorch (headers, torch_cpu, c10).
#
# LibTorch's own package file demands a CUDA toolkit even for CPU use, so it is not used. The folder is, in this order: one on
# CMAKE_PREFIX_PATH that holds lib/libtorch_cpu.so, the one libmarlin was built with (set by marlinConfig.cmake), the wheel
# that scripts/bootstrap put into .deps/venv. What is wrong with it, if anything, is in MARLIN_LIBTORCH_PROBLEM afterwards.
unset(MARLIN_LIBTORCH_PROBLEM)

file(GLOB _marlin_wheel "${CMAKE_CURRENT_LIST_DIR}/../.deps/venv/lib/python3*/site-packages/torch")
find_path(MARLIN_LIBTORCH_DIR NO_CACHE NAMES lib/libtorch_cpu.so
  HINTS ${MARLIN_LIBTORCH_HINT} PATHS ${_marlin_wheel} NO_CMAKE_SYSTEM_PATH
  DOC "Folder of LibTorch: the one that holds include/ and lib/")
if(NOT MARLIN_LIBTORCH_DIR)
  set(MARLIN_LIBTORCH_PROBLEM "LibTorch was not found. Pass -DCMAKE_PREFIX_PATH=<folder with include/ and lib/libtorch_cpu.so>, or run libmarlin's scripts/bootstrap.")
  return()
endif()

file(STRINGS "${MARLIN_LIBTORCH_DIR}/include/torch/csrc/api/include/torch/version.h" _marlin_version_lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH)")
if(NOT _marlin_version_lines AND EXISTS "${MARLIN_LIBTORCH_DIR}/include/torch/headeronly/version.h")
  file(STRINGS "${MARLIN_LIBTORCH_DIR}/include/torch/headeronly/version.h" _marlin_version_lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH)")
endif()
foreach(_part MAJOR MINOR PATCH)
  string(REGEX MATCH "TORCH_VERSION_${_part} ([0-9]+)" _ "${_marlin_version_lines}")
  set(_marlin_torch_${_part} "${CMAKE_MATCH_1}")
endforeach()
set(MARLIN_LIBTORCH_VERSION "${_marlin_torch_MAJOR}.${_marlin_torch_MINOR}.${_marlin_torch_PATCH}")
if(MARLIN_LIBTORCH_VERSION VERSION_LESS 2.15)
  set(MARLIN_LIBTORCH_PROBLEM "LibTorch ${MARLIN_LIBTORCH_VERSION} in ${MARLIN_LIBTORCH_DIR} is too old: libmarlin needs 2.15 or later.")
  return()
endif()
if(NOT marlin_FIND_QUIETLY)
  message(STATUS "LibTorch ${MARLIN_LIBTORCH_VERSION}: ${MARLIN_LIBTORCH_DIR}")
endif()

foreach(_library c10 torch_cpu)
  if(NOT TARGET marlin_${_library})
    add_library(marlin_${_library} SHARED IMPORTED GLOBAL)
    set_target_properties(marlin_${_library} PROPERTIES IMPORTED_LOCATION "${MARLIN_LIBTORCH_DIR}/lib/lib${_library}.so")
  endif()
endforeach()
if(NOT TARGET marlin::libtorch)
  add_library(marlin::libtorch INTERFACE IMPORTED GLOBAL)
  set_target_properties(marlin::libtorch PROPERTIES
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${MARLIN_LIBTORCH_DIR}/include;${MARLIN_LIBTORCH_DIR}/include/torch/csrc/api/include"
    INTERFACE_INCLUDE_DIRECTORIES "${MARLIN_LIBTORCH_DIR}/include;${MARLIN_LIBTORCH_DIR}/include/torch/csrc/api/include"
    INTERFACE_COMPILE_FEATURES cxx_std_20
    INTERFACE_LINK_LIBRARIES "marlin_torch_cpu;marlin_c10")
endif()
