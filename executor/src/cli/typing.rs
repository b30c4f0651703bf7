//! `quorate run --console`: standard input goes to the guests' consoles.

use std::io::{IsTerminal, Stdin, stdin};
use std::os::fd::AsFd;

use vmm_sys_util::terminal::Terminal;

use crate::relaxed::set::RelaxedHandle;

/// Bytes of one input: what somebody types comes at once, and a file in pieces.
const TYPED_BYTES: usize = 1 << 10;
/// Ctrl-]: from here on the terminal is as before, and nothing is given to the guests.
const ESCAPE: u8 = 0x1d;

/// While it is there, a terminal gives every key at once, Ctrl-C included, and echoes nothing: the guest does both.
pub(super) struct Typing(Option<Stdin>);

impl Drop for Typing {
    fn drop(&mut self) {
        if let Some(terminal) = &self.0 {
            // There is nobody to tell.
            let _ = terminal.lock().set_canon_mode();
        }
    }
}

/// Starts the thread that reads standard input. It ends with the input, with the set, or with the process: nothing interrupts a read.
pub(super) fn start(handle: RelaxedHandle) -> std::io::Result<Typing> {
    let input = stdin();
    let terminal = input.is_terminal();
    let typing = Typing(terminal.then(stdin));
    if let Some(terminal) = &typing.0 {
        terminal.lock().set_raw_mode()?;
    }
    std::thread::Builder::new()
        .name("typing".to_owned())
        .spawn(move || {
            let mut bytes = [0; TYPED_BYTES];
            let mut open = true;
            while open {
                // Not through the lock of `Stdin`, which whoever puts the terminal back needs.
                let read = match rustix::io::read(input.as_fd(), &mut bytes) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => {
                        tracing::warn!(%error, "nothing more can be typed");
                        break;
                    }
                };
                let typed = bytes.get(..read).unwrap_or_default();
                let escape = typed.iter().position(|byte| terminal && *byte == ESCAPE);
                let typed = escape.map_or(typed, |at| typed.get(..at).unwrap_or_default());
                open = handle.type_in(typed) && escape.is_none();
            }
            if terminal {
                drop(Typing(Some(stdin())));
            }
        })?;
    Ok(typing)
}
