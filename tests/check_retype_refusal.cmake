# cmake -DGLSLANG= -DRETYPE= -DSHADER= -DWORK_DIR= -P check_retype_refusal.cmake: a shader that computes with its 16-bit
# float type compiles, but must not be retyped to bfloat16.
set(module ${WORK_DIR}/float16_arithmetic.spv)
set(retyped ${WORK_DIR}/float16_arithmetic_bf16.spv)
file(REMOVE ${retyped})
execute_process(COMMAND ${GLSLANG} --quiet -V --target-env vulkan1.2 -o ${module} ${SHADER} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${RETYPE} ${module} ${retyped} ERROR_VARIABLE errors RESULT_VARIABLE result)
if(result EQUAL 0 OR EXISTS ${retyped} OR NOT errors MATCHES "computes with its 16-bit float type")
  message(FATAL_ERROR "not refused (${result}): ${errors}")
endif()
