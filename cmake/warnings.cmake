# Warnings and sanitizers for our own targets; warnings are errors in our own build only.
set(GUANACO_SANITIZE "" CACHE STRING "address, undefined, thread, or a list of them")

function(guanaco_warnings target)
  if(PROJECT_IS_TOP_LEVEL)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wnon-virtual-dtor;-Werror>)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
      target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)  # GCC bug 105651: fires in std::string
    endif()
  endif()
  if(GUANACO_SANITIZE)
    string(REPLACE ";" "," sanitizers "${GUANACO_SANITIZE}")
    target_compile_options(${target} PUBLIC $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${sanitizers};-fno-sanitize-recover=all;-fno-omit-frame-pointer>)
    target_link_options(${target} PUBLIC -fsanitize=${sanitizers})
  endif()
endfunction()
