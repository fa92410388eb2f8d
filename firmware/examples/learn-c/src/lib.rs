//! A model as a static library for C: nothing but the model, the C interface and what stops a panic that cannot be.
#![no_std]

include!(concat!(env!("OUT_DIR"), "/model.rs"));

tinyforge_firmware::c_interface!(model::Net = model::Net::new(), write 8, erase 1024);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
