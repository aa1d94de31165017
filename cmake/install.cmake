# What `cmake --install` puts where: the headers, the library, and how CMake and pkg-config find them.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/guanaco)

# libguanaco.so.1 alone is what a program needs to run; all else is for building programs.
install(TARGETS guanaco EXPORT guanaco-targets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development)
install(TARGETS guanaco_c EXPORT guanaco-c-targets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT runtime NAMELINK_COMPONENT development)
install(DIRECTORY include/guanaco DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development
        FILES_MATCHING PATTERN "*.h")
foreach(targets guanaco-targets guanaco-c-targets)
  install(EXPORT ${targets} NAMESPACE guanaco:: DESTINATION ${package_dir} COMPONENT development)
endforeach()

configure_package_config_file(cmake/guanaco-config.cmake.in ${PROJECT_BINARY_DIR}/guanaco-config.cmake
                              INSTALL_DESTINATION ${package_dir})
# As README promises of C++ source; guanaco::c keeps more, but a package has one version.
set(compatibility SameMajorVersion)
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(compatibility SameMinorVersion)
endif()
write_basic_package_version_file(${PROJECT_BINARY_DIR}/guanaco-config-version.cmake COMPATIBILITY ${compatibility})
install(FILES ${PROJECT_BINARY_DIR}/guanaco-config.cmake ${PROJECT_BINARY_DIR}/guanaco-config-version.cmake
        DESTINATION ${package_dir} COMPONENT development)

# Paths in guanaco.pc are relative to itself, so that the prefix may be moved.
set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH pkgconfig_to_prefix /prefix/${pkgconfig_dir} /prefix)
if(GUANACO_CUDA)
  set(pkgconfig_cuda " -L${CUDAToolkit_LIBRARY_DIR} -Wl,-rpath,${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lcublasLt -ldl -lrt")
endif()
foreach(pc guanaco guanaco-c)
  configure_file(cmake/${pc}.pc.in ${PROJECT_BINARY_DIR}/${pc}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${pc}.pc DESTINATION ${pkgconfig_dir} COMPONENT development)
endforeach()

# `cpack -G DEB`: libguanaco1, what programs need, and libguanaco-dev, what building them needs.
set(CPACK_PACKAGE_VENDOR "the engineers of libguanaco")
set(CPACK_PACKAGE_CONTACT "${CPACK_PACKAGE_VENDOR} <libguanaco@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_COMPONENTS_ALL runtime development)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME libguanaco${GUANACO_ABI})
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_CONTROL_EXTRA ${PROJECT_SOURCE_DIR}/capi/triggers)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libguanaco-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SHLIBDEPS OFF)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS
    "libguanaco${GUANACO_ABI} (= ${PROJECT_VERSION}), libsentencepiece-dev, pkg-config")
include(CPack)
