"""The native operations' cases, for C++: see cases.py and CMakeLists.txt."""
