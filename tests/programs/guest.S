/* What QEMU runs: a boot sector, in 16-bit mode, that fills 256 KiB of memory with a text and sums it up, for ever.
   It writes 'r' to the serial port when it has begun, 'k' after each sum that is right, and 'x' for one that is not. */

    .code16
    .globl _start
_start:
    xorw %ax, %ax
    movw %ax, %ss
    movw $0x7c00, %sp
    movw %ax, %ds
    cld

    /* 0x10000 to 0x4ffff: 8192 copies of 32 bytes */
    movw $0x1000, %dx
fill:
    movw %dx, %es
    xorw %di, %di
    movw $128, %bx              /* 128 * 32 bytes are 4 KiB: 256 paragraphs */
copy:
    movw $text, %si
    movw $32, %cx
    rep movsb
    decw %bx
    jnz copy
    addw $0x100, %dx
    cmpw $0x5000, %dx
    jne fill

    call sum
    movl %eax, expected
    movb $'r', %al
    call say
again:
    call sum
    movl %eax, %ebx
    movb $'k', %al
    cmpl expected, %ebx
    je right
    movb $'x', %al
right:
    call say
    jmp again

sum:
    xorl %eax, %eax
    movw $0x1000, %dx
segment:
    movw %dx, %ds
    xorw %si, %si
    movw $0x400, %cx
words:
    addl (%si), %eax
    roll $1, %eax
    addw $4, %si
    loop words
    addw $0x100, %dx
    cmpw $0x5000, %dx
    jne segment
    xorw %dx, %dx
    movw %dx, %ds
    ret

say:
    movw $0x3f8, %dx
    outb %al, %dx
    ret

text:
    .ascii "the plain text of guest.S, known"
expected:
    .long 0

    . = _start + 510
    .word 0xaa55
