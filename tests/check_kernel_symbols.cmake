# cmake -DNM= -DVARIANT= -DOBJECTS= -P check_kernel_symbols.cmake: every symbol that a CPU kernel object shows to the
# linker must carry its variant's name. One that does not (a standard library template, say) has the same name in
# the other variants; the linker keeps any one of them, and the program dies on a CPU without its instructions.
execute_process(COMMAND ${NM} -g -P --defined-only ${OBJECTS} OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]+" lines "${output}")
list(FILTER lines INCLUDE REGEX " [A-Za-z] ")
list(LENGTH lines count)
list(FILTER lines EXCLUDE REGEX "${VARIANT}|^DW\\.ref\\.")  # DW.ref.: a pointer to the unwinder's data, not code
if(lines OR count EQUAL 0)
  list(JOIN lines "\n" lines)
  message(FATAL_ERROR "of ${count} symbols, these do not belong to ${VARIANT} alone:\n${lines}")
endif()
message("${count} symbols, all of them ${VARIANT}'s own")
