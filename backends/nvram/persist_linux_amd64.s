#include "textflag.h"

// func cpuid7() uint32
TEXT ·cpuid7(SB), NOSPLIT, $0-4
	MOVL $0, ret+0(FP)
	XORL AX, AX
	XORL CX, CX
	CPUID
	CMPL AX, $7
	JB   old
	MOVL $7, AX
	XORL CX, CX
	CPUID
	MOVL BX, ret+0(FP)

old:
	RET

// func clwb(p unsafe.Pointer, n uintptr)
TEXT ·clwb(SB), NOSPLIT, $0-16
	MOVQ p+0(FP), AX
	MOVQ n+8(FP), DX
	ADDQ AX, DX
	ANDQ $~63, AX

line:
	CLWB (AX)
	ADDQ $64, AX
	CMPQ AX, DX
	JB   line
	SFENCE
	RET

// func clflush(p unsafe.Pointer, n uintptr)
TEXT ·clflush(SB), NOSPLIT, $0-16
	MOVQ p+0(FP), AX
	MOVQ n+8(FP), DX
	ADDQ AX, DX
	ANDQ $~63, AX

line:
	CLFLUSH (AX)
	ADDQ $64, AX
	CMPQ AX, DX
	JB   line
	SFENCE
	RET
