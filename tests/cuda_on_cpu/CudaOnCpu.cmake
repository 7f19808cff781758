# Runs .cu sources on the CPU. Include this file, then:
#
#   kizu_emulate_cuda(<target> SOURCES a.cu b.cu ...)
#     Compiles the sources with the C++ compiler against the emulator and links them into the target. No nvcc needed.
#
#   kizu_translate_ptx(<target> SOURCES a.cu b.cu ... [PROFILE] [ARCHITECTURE 90])
#     Compiles the sources with nvcc, translates the PTX to C++ and links both into the target, with nvcc's own host
#     code. PROFILE counts instructions and memory traffic; the program writes them to $CUDA_ON_CPU_PROFILE.
#
# Kernels are compiled with the target's own options, definitions, include directories and sanitizers. The runtime is
# never instrumented. Both functions make the CUDA headers visible to the target and to what links it.
#
# Cache variables: CUDA_ON_CPU_INCLUDE_DIR (CUDA's headers), CUDA_ON_CPU_NVCC (for kizu_translate_ptx alone).

include_guard(GLOBAL)

set(CUDA_ON_CPU_DIR "${CMAKE_CURRENT_LIST_DIR}")

find_path(
  CUDA_ON_CPU_INCLUDE_DIR cuda_fp16.h
  HINTS ENV CUDA_PATH ENV CUDA_HOME
  PATHS /usr/local/cuda /opt/cuda
  PATH_SUFFIXES include
  NO_CMAKE_FIND_ROOT_PATH
  DOC "Folder of CUDA's headers")
if(NOT CUDA_ON_CPU_INCLUDE_DIR)
  file(GLOB _versions LIST_DIRECTORIES true /usr/local/cuda-*)
  find_path(CUDA_ON_CPU_INCLUDE_DIR cuda_fp16.h PATHS ${_versions} PATH_SUFFIXES include NO_CMAKE_FIND_ROOT_PATH)
endif()

# The runtime, once a build. -fno-sanitize=all: the build's flags may ask for a sanitizer.
function(_cuda_on_cpu_runtime)
  if(TARGET cuda_on_cpu_runtime)
    return()
  endif()
  if(NOT CUDA_ON_CPU_INCLUDE_DIR)
    message(FATAL_ERROR "CUDA's headers are not found; set CUDA_ON_CPU_INCLUDE_DIR to the folder of cuda_fp16.h "
                        "(pip install nvidia-cuda-runtime has them, too)")
  endif()
  file(GLOB sources CONFIGURE_DEPENDS "${CUDA_ON_CPU_DIR}/emulator/*.cpp")
  add_library(cuda_on_cpu_runtime STATIC ${sources})
  target_compile_features(cuda_on_cpu_runtime PUBLIC cxx_std_20)
  target_compile_options(cuda_on_cpu_runtime PRIVATE -O2 -g -Wall -Wextra -fno-sanitize=all)
  target_include_directories(cuda_on_cpu_runtime SYSTEM PUBLIC "${CUDA_ON_CPU_INCLUDE_DIR}")
  set_target_properties(cuda_on_cpu_runtime PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
  # All of it, for those who call it from outside of a shared library; whose own calls go nowhere else, even if some
  # other library of the process has entry points of these names.
  target_link_options(
    cuda_on_cpu_runtime INTERFACE
    "SHELL:LINKER:--whole-archive $<TARGET_FILE:cuda_on_cpu_runtime> LINKER:--no-whole-archive"
    "LINKER:-Bsymbolic-functions")
endfunction()

# A file-system name for a source: distinct for distinct paths.
function(_cuda_on_cpu_name source out)
  get_filename_component(stem "${source}" NAME_WE)
  string(SHA1 hash "${source}")
  string(SUBSTRING "${hash}" 0 8 hash)
  set(${out} "${stem}-${hash}" PARENT_SCOPE)
endfunction()

# Options of code that stands for a kernel: nothing that the GPU's compiler would not do to its floating point.
set(_CUDA_ON_CPU_KERNEL_OPTIONS -ffp-contract=off)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND _CUDA_ON_CPU_KERNEL_OPTIONS -mfma -mf16c) # fma and half conversions as instructions, for speed
endif()

function(kizu_emulate_cuda target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES")
  _cuda_on_cpu_runtime()
  set(includes "${CUDA_ON_CPU_DIR}/emulator")
  foreach(source IN LISTS arg_SOURCES)
    get_filename_component(source "${source}" ABSOLUTE)
    _cuda_on_cpu_name("${source}" name)
    # A .cpp that includes the .cu: so the .cu keeps no property that another use of it would see.
    set(wrapper "${CMAKE_CURRENT_BINARY_DIR}/cuda_on_cpu/${target}/${name}.emulated.cpp")
    file(CONFIGURE OUTPUT "${wrapper}" CONTENT "#include \"cuda_on_cpu.h\"\n#include \"@source@\"\n" @ONLY)
    target_sources(${target} PRIVATE "${wrapper}")
    set_source_files_properties(
      "${wrapper}" TARGET_DIRECTORY ${target}
      PROPERTIES COMPILE_OPTIONS "${_CUDA_ON_CPU_KERNEL_OPTIONS};-Wno-unknown-pragmas"
                 INCLUDE_DIRECTORIES "${includes}")
  endforeach()
  target_link_libraries(${target} PUBLIC cuda_on_cpu_runtime)
  target_compile_features(${target} PRIVATE cxx_std_20)
endfunction()

# What nvcc's host code and the translated kernels call.
function(_cuda_on_cpu_ptx_runtime)
  if(TARGET cuda_on_cpu_ptx)
    return()
  endif()
  find_program(CUDA_ON_CPU_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda /opt/cuda
               PATH_SUFFIXES bin DOC "NVIDIA's compiler")
  if(NOT CUDA_ON_CPU_NVCC)
    message(FATAL_ERROR "nvcc is not found; set CUDA_ON_CPU_NVCC, or use kizu_emulate_cuda, which needs none")
  endif()
  _cuda_on_cpu_runtime()
  file(GLOB sources CONFIGURE_DEPENDS "${CUDA_ON_CPU_DIR}/ptx/*.cpp")
  add_library(cuda_on_cpu_ptx STATIC ${sources})
  target_compile_options(cuda_on_cpu_ptx PRIVATE -O2 -g -Wall -Wextra -fno-sanitize=all)
  target_include_directories(cuda_on_cpu_ptx PRIVATE "${CUDA_ON_CPU_DIR}/emulator" "${CUDA_ON_CPU_DIR}/ptx")
  target_link_libraries(cuda_on_cpu_ptx PUBLIC cuda_on_cpu_runtime)
  set_target_properties(cuda_on_cpu_ptx PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
endfunction()

function(kizu_translate_ptx target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "PROFILE" "ARCHITECTURE" "SOURCES")
  if(NOT arg_ARCHITECTURE)
    set(arg_ARCHITECTURE 90)
  endif()
  _cuda_on_cpu_ptx_runtime()
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
  set(includes "$<TARGET_PROPERTY:${target},INCLUDE_DIRECTORIES>")
  set(definitions "$<TARGET_PROPERTY:${target},COMPILE_DEFINITIONS>")
  set(translator "${CUDA_ON_CPU_DIR}/ptx/translate.py")

  foreach(source IN LISTS arg_SOURCES)
    get_filename_component(source "${source}" ABSOLUTE)
    get_filename_component(stem "${source}" NAME_WE)
    _cuda_on_cpu_name("${source}" name)
    set(folder "${CMAKE_CURRENT_BINARY_DIR}/cuda_on_cpu/${target}/${name}")
    file(MAKE_DIRECTORY "${folder}")
    string(MAKE_C_IDENTIFIER "ptx_translation_of_${target}_${name}" anchor)
    # One run of nvcc gives both, so that the names of kernels in anonymous namespaces agree. ptxas has no part in it.
    add_custom_command(
      OUTPUT "${folder}/host.o" "${folder}/${stem}.ptx"
      COMMAND
        "${CUDA_ON_CPU_NVCC}" -std=c++20 -O2
        "-gencode=arch=compute_${arg_ARCHITECTURE},code=compute_${arg_ARCHITECTURE}"
        -fmad=false -lineinfo -ccbin "${CMAKE_CXX_COMPILER}" -Xcompiler=-fPIC,-ffp-contract=off
        "$<$<BOOL:${includes}>:-I$<JOIN:${includes},;-I>>" "$<$<BOOL:${definitions}>:-D$<JOIN:${definitions},;-D>>"
        --keep --keep-dir "${folder}" -MD -MF "${folder}/host.d" -c "${source}" -o "${folder}/host.o"
      DEPENDS "${source}"
      DEPFILE "${folder}/host.d"
      COMMENT "nvcc ${stem}.cu"
      COMMAND_EXPAND_LISTS VERBATIM)
    add_custom_command(
      OUTPUT "${folder}/translated.cpp"
      COMMAND "${Python_EXECUTABLE}" "${translator}" "${folder}/${stem}.ptx" "${folder}/translated.cpp" "${anchor}"
      DEPENDS "${folder}/${stem}.ptx" "${translator}" "${CUDA_ON_CPU_DIR}/ptx/parse.py"
      COMMENT "Translating ${stem}.ptx"
      VERBATIM)
    target_sources(${target} PRIVATE "${folder}/host.o" "${folder}/translated.cpp")
    set_source_files_properties("${folder}/host.o" TARGET_DIRECTORY ${target}
                                PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    set_source_files_properties(
      "${folder}/translated.cpp" TARGET_DIRECTORY ${target}
      PROPERTIES COMPILE_OPTIONS "${_CUDA_ON_CPU_KERNEL_OPTIONS};-w"
                 COMPILE_DEFINITIONS "$<$<BOOL:${arg_PROFILE}>:PTX_PROFILE>"
                 INCLUDE_DIRECTORIES "${CUDA_ON_CPU_DIR}/emulator;${CUDA_ON_CPU_DIR}/ptx")
    # Nothing names the translated kernels: they register themselves. From a static library the linker would not take
    # them, but for this.
    target_link_options(${target} INTERFACE "LINKER:--undefined=${anchor}")
  endforeach()
  target_link_libraries(${target} PUBLIC cuda_on_cpu_ptx)
  target_compile_features(${target} PRIVATE cxx_std_20)
endfunction()
