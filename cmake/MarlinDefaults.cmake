# marlin_defaults(target ...): language level, warnings, visibility, sanitizers, run paths and the precompiled header of this project.
include_guard(GLOBAL)

if(NOT CMAKE_BUILD_TYPE AND PROJECT_IS_TOP_LEVEL)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
if(PROJECT_IS_TOP_LEVEL)
  set(CMAKE_CXX_FLAGS_RELEASE "-O2")           # assertions stay on: a trainer is not faster without them
  set(CMAKE_CXX_FLAGS_DEBUG "-O0 -g1 -D_GLIBCXX_ASSERTIONS")
  set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
  set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")
  find_program(MARLIN_CCACHE ccache)
  if(MARLIN_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${MARLIN_CCACHE}")
  endif()
endif()
# One precompiled header serves libraries and programs only if both are compiled with the same -f flag.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_COMPILE_OPTIONS_PIE "-fPIC")
set(MARLIN_PLUGIN_OUTPUT_DIR "${PROJECT_BINARY_DIR}/lib/marlin/plugins")

# What precompiled headers hold. A header that is compiled already still costs its templates in every file: 0.3 s a file for tensors, 2 s for modules, and
# 4 s for torch, which is for programs that include <torch/torch.h>.
set(MARLIN_PCH_tensors <ATen/core/Tensor.h>)
set(MARLIN_PCH_modules <torch/nn/module.h> <torch/optim/optimizer.h>)
set(MARLIN_PCH_torch <torch/torch.h>)

function(marlin_defaults target)
  cmake_parse_arguments(arg "PLAIN" "PCH" "" ${ARGN})   # PLAIN: includes no LibTorch header, so takes no precompiled header; PCH: tensors, modules or torch (default)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES
    CXX_EXTENSIONS OFF CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON DEFINE_SYMBOL ""
    INSTALL_RPATH "$ORIGIN;$ORIGIN/../${CMAKE_INSTALL_LIBDIR};${MARLIN_LIBTORCH_DIR}/lib")
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wno-unused-parameter $<$<BOOL:${MARLIN_WERROR}>:-Werror>)
  if(MARLIN_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${MARLIN_SANITIZE} -fno-sanitize=vptr -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=${MARLIN_SANITIZE})
  endif()
  if(NOT arg_PLAIN)
    set(headers torch)
    if(arg_PCH)
      set(headers ${arg_PCH})
    endif()
    set(pch marlin_pch_${headers})
    if(NOT TARGET ${pch})
      add_library(${pch} OBJECT "${PROJECT_SOURCE_DIR}/cmake/pch.cpp")
      target_link_libraries(${pch} PRIVATE marlin::libtorch)
      target_precompile_headers(${pch} PRIVATE ${MARLIN_PCH_${headers}})
      target_compile_options(${pch} PRIVATE -fpch-preprocess)
      marlin_defaults(${pch} PLAIN)
    endif()
    target_compile_options(${target} PRIVATE -fpch-preprocess -Winvalid-pch)
    target_precompile_headers(${target} REUSE_FROM ${pch})
  endif()
endfunction()

# marlin_install(target): the library and its public headers go into the package.
function(marlin_install target)
  if(MARLIN_INSTALL)
    install(TARGETS ${target} EXPORT marlinTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} FILE_SET HEADERS)
  endif()
endfunction()
