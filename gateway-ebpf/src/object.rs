//! What every object of this crate carries besides its programs.

// SAFETY: the kernel and every loader read this section as a NUL-terminated string.
#[unsafe(link_section = "license")]
// SAFETY: the only symbol of this name in the object.
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
