/* Start-up of a Cortex-M4F or M7 for newlib: the vector table, the floating-point unit, then newlib's own start. */
#include <stdint.h>

extern uint32_t __stack;
extern void _start(void);

#define COPROCESSOR_ACCESS (*(volatile uint32_t *)0xE000ED88u)

void reset(void) {
    COPROCESSOR_ACCESS |= 0xFu << 20; /* full access to CP10 and CP11 */
    __asm__ volatile("dsb\n isb");
    _start();
}

void stop(void) {
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) void *const vectors[16] = {
    &__stack, reset, stop, stop, stop, stop, stop,
};
