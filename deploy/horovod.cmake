# CMake's toolchain file for Horovod's build: CPU and Gloo alone, whatever of CUDA this machine has.

set(ENV{HOROVOD_WITH_PYTORCH} 1)
set(ENV{HOROVOD_WITH_GLOO} 1)
foreach(part IN ITEMS MPI MXNET NVTX TENSORFLOW)
    set(ENV{HOROVOD_WITHOUT_${part}} 1)
endforeach()
# Not for this processor alone: the wheel is kept, and another machine may find it.
set(ENV{HOROVOD_BUILD_ARCH_FLAGS} -mtune=generic)

# Horovod's CMakeLists enables CUDA where it finds a compiler or a toolkit ...
set(CMAKE_CUDA_COMPILER NOTFOUND)
set(CMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit ON)
# ... or where PyTorch knows CUDA, which it asks by `${PYTHON_EXECUTABLE} -c CODE`. CODE sees a PyTorch that does not.
set(PYTHON_EXECUTABLE $CACHE{PYTHON_EXECUTABLE} -c [[
import sys, torch
torch.version.cuda = torch.version.hip = None
exec(sys.argv[2])
]])

# project() overwrites what follows, so that this file is read once more after it.
set(CMAKE_PROJECT_INCLUDE ${CMAKE_CURRENT_LIST_FILE})
set(CMAKE_CXX14_STANDARD_COMPILE_OPTION -std=c++17)  # Horovod asks for C++14, PyTorch's headers for C++17
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG")  # without debug information: two thirds of the time

set(CMAKE_POLICY_VERSION_MINIMUM 3.5)  # Gloo's CMakeLists is older than what CMake 4 reads
