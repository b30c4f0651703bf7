//! What the user sees while something takes time: a spinner on a terminal, plain lines elsewhere. All on standard error.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use quorate_images::Progress as Building;

/// Writes one line for the user.
pub fn line(text: &str) {
    // Standard error may be closed; that must not end a running set.
    let _ = writeln!(std::io::stderr(), "quorate: {text}");
}

/// See the module.
pub struct Progress {
    bar: Option<ProgressBar>,
    last: RefCell<String>,
}

impl Progress {
    /// Starts with nothing to say.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress {
            bar,
            last: RefCell::default(),
        }
    }

    /// Says what is being done now. `detail` is for a terminal only: it changes too often for lines.
    pub fn step(&self, text: &str, detail: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{text} {detail}")),
            None if *self.last.borrow() != text => {
                line(text);
                text.clone_into(&mut self.last.borrow_mut());
            }
            None => {}
        }
    }

    /// A step of building an image.
    pub fn building(&self, step: Building<'_>) {
        match step {
            Building::UpdatingLists => self.step("fetching package lists", ""),
            Building::Resolving => self.step("working out which packages are needed", ""),
            Building::Downloading { percent, what } => {
                self.step("downloading packages", &format!("{percent} % {what}"));
            }
            Building::Unpacking {
                package,
                index,
                total,
            } => {
                self.step("unpacking packages", &format!("{index}/{total} {package}"));
            }
            Building::Writing => self.step("writing the image", ""),
            _ => {}
        }
    }

    /// Takes the spinner away.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
