//! Says a line, waits, and then ends its own virtual machine: in every replica and in every life at the same place, as a defect of the
//! guest kernel would.

use std::io::Write;
use std::time::Duration;

/// Where the guest kernel tells the monitor that it cannot go on.
const PANIC_PORT: u16 = 0x514;

fn main() {
    println!("doom is near");
    let _ = std::io::stdout().flush();
    // Long enough that the line is out.
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: ports are open to programs in the guest; on Linux this raises SIGSEGV.
    unsafe {
        std::arch::asm!("out dx, eax", in("dx") PANIC_PORT, in("eax") 13u32, options(nomem, nostack));
    }
    println!("and it did not come");
}
