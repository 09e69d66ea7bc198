#include "textflag.h"

// Bit-reflected multipliers of CRC-32C for a 128-bit lane folded over D bits: x^(D+32) and x^(D-32)
// mod 0x11EDC6F41, reflected and shifted by one. D is 2048 (four registers on) and 512 (one).
DATA by2048<>+0(SB)/8, $0xdcb17aa4
DATA by2048<>+8(SB)/8, $0xb9e02b86
GLOBL by2048<>(SB), RODATA|NOPTR, $16
DATA by512<>+0(SB)/8, $0x740eef02
DATA by512<>+8(SB)/8, $0x9e4addf8
GLOBL by512<>(SB), RODATA|NOPTR, $16

// FOLD carries Z over by the distance of Z10 onto data.
#define FOLD(Z, data) \
	VPCLMULQDQ $0x00, Z10, Z, Z8; \
	VPCLMULQDQ $0x11, Z10, Z, Z;  \
	VPTERNLOGD $0x96, data, Z8, Z

// LOAD takes 256 bytes at SI into four registers.
#define LOAD(A, B, C, D) \
	VMOVDQU64 (SI), A;    \
	VMOVDQU64 64(SI), B;  \
	VMOVDQU64 128(SI), C; \
	VMOVDQU64 192(SI), D

// STORE puts them at DI, STOREPAST past the caches.
#define STORE(A, B, C, D) \
	VMOVDQU64 A, (DI);    \
	VMOVDQU64 B, 64(DI);  \
	VMOVDQU64 C, 128(DI); \
	VMOVDQU64 D, 192(DI)

#define STOREPAST(A, B, C, D) \
	VMOVNTDQ A, (DI);    \
	VMOVNTDQ B, 64(DI);  \
	VMOVNTDQ C, 128(DI); \
	VMOVNTDQ D, 192(DI)

// BEGIN lets the checksum before, in AX, into the first bytes.
#define BEGIN \
	NOTL AX;           \
	VMOVD AX, X9;      \
	VPXORQ Z9, Z0, Z0; \
	VBROADCASTI32X4 by2048<>(SB), Z10

// END makes one register of the four, whose 64 bytes have the checksum of all.
#define END \
	VBROADCASTI32X4 by512<>(SB), Z10; \
	FOLD(Z0, Z1);                     \
	FOLD(Z0, Z2);                     \
	FOLD(Z0, Z3);                     \
	VMOVDQU64 Z0, rest-64(SP);        \
	VZEROUPPER;                       \
	XORL AX, AX;                      \
	CRC32Q rest-64(SP), AX;           \
	CRC32Q rest-56(SP), AX;           \
	CRC32Q rest-48(SP), AX;           \
	CRC32Q rest-40(SP), AX;           \
	CRC32Q rest-32(SP), AX;           \
	CRC32Q rest-24(SP), AX;           \
	CRC32Q rest-16(SP), AX;           \
	CRC32Q rest-8(SP), AX;            \
	NOTL AX

// func fold(p *byte, n int, crc uint32) uint32
TEXT ·fold(SB), NOSPLIT, $64-28
	MOVQ p+0(FP), SI
	MOVQ n+8(FP), CX
	MOVL crc+16(FP), AX
	LOAD(Z0, Z1, Z2, Z3)
	BEGIN

next:
	ADDQ $256, SI
	SUBQ $256, CX
	JZ   end
	FOLD(Z0, (SI))
	FOLD(Z1, 64(SI))
	FOLD(Z2, 128(SI))
	FOLD(Z3, 192(SI))
	JMP  next

end:
	END
	MOVL AX, ret+24(FP)
	RET

// COPY is fold that puts what it has loaded; arguments are in DI, SI, CX and AX.
#define COPY(PUT) \
	LOAD(Z0, Z1, Z2, Z3);     \
	PUT(Z0, Z1, Z2, Z3);      \
	BEGIN;                    \
next:                             \
	ADDQ $256, SI;            \
	ADDQ $256, DI;            \
	SUBQ $256, CX;            \
	JZ   end;                 \
	LOAD(Z4, Z5, Z6, Z7);     \
	PUT(Z4, Z5, Z6, Z7);      \
	FOLD(Z0, Z4);             \
	FOLD(Z1, Z5);             \
	FOLD(Z2, Z6);             \
	FOLD(Z3, Z7);             \
	JMP  next;                \
end:                              \
	END

// func foldCopy(dst, p *byte, n int, crc uint32) uint32
TEXT ·foldCopy(SB), NOSPLIT, $64-36
	MOVQ dst+0(FP), DI
	MOVQ p+8(FP), SI
	MOVQ n+16(FP), CX
	MOVL crc+24(FP), AX
	COPY(STORE)
	MOVL AX, ret+32(FP)
	RET

// func foldCopyPast(dst, p *byte, n int, crc uint32) uint32
TEXT ·foldCopyPast(SB), NOSPLIT, $64-36
	MOVQ dst+0(FP), DI
	MOVQ p+8(FP), SI
	MOVQ n+16(FP), CX
	MOVL crc+24(FP), AX
	COPY(STOREPAST)
	MOVL AX, ret+32(FP)
	RET
