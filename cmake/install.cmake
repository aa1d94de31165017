# What `cmake --install` puts where: the headers, the library, and how CMake and pkg-config find them.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/guanaco)

install(TARGETS guanaco EXPORT guanaco-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/guanaco DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(EXPORT guanaco-targets NAMESPACE guanaco:: DESTINATION ${package_dir})

configure_package_config_file(cmake/guanaco-config.cmake.in ${PROJECT_BINARY_DIR}/guanaco-config.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/guanaco-config-version.cmake
                                 COMPATIBILITY SameMajorVersion)
install(FILES ${PROJECT_BINARY_DIR}/guanaco-config.cmake ${PROJECT_BINARY_DIR}/guanaco-config-version.cmake
        DESTINATION ${package_dir})

# Paths in guanaco.pc are relative to itself, so that the prefix may be moved.
set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH pkgconfig_to_prefix /prefix/${pkgconfig_dir} /prefix)
if(GUANACO_CUDA)
  set(pkgconfig_cuda " -L${CUDAToolkit_LIBRARY_DIR} -Wl,-rpath,${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lcublasLt -ldl -lrt")
endif()
configure_file(cmake/guanaco.pc.in ${PROJECT_BINARY_DIR}/guanaco.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/guanaco.pc DESTINATION ${pkgconfig_dir})
