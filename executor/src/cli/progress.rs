//! What the user sees while something takes time: a bar or a spinner on a terminal, plain lines elsewhere. All on standard error.

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

/// Writes an answer to standard output. A reader that has had enough (`quorate status | head`) is no error of anybody's.
pub fn answer(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end_matches('\n'));
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
        self.show(text, detail, None);
    }

    /// As [`Progress::step`], with how far it is: so many parts of so many.
    fn show(&self, text: &str, detail: &str, done: Option<(u64, u64)>) {
        let changed = *self.last.borrow() != text;
        if changed {
            text.clone_into(&mut self.last.borrow_mut());
        }
        let Some(bar) = &self.bar else {
            if changed {
                line(text);
            }
            return;
        };
        if changed {
            let template = match done {
                Some(_) => "{spinner} {prefix} [{bar:30}] {pos}/{len} {msg}",
                None => "{spinner} {prefix} {msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(text.to_owned());
        }
        if let Some((position, length)) = done {
            bar.set_length(length);
            bar.set_position(position);
        }
        bar.set_message(detail.to_owned());
    }

    /// How far a replay is. On a terminal only.
    pub fn replaying(&self, position: u64, length: u64) {
        if self.bar.is_some() {
            self.show("replaying", "", Some((position, length)));
        }
    }

    /// A step of building an image.
    pub fn building(&self, step: Building<'_>) {
        match step {
            Building::UpdatingLists => self.step("fetching package lists", ""),
            Building::Resolving => self.step("working out which packages are needed", ""),
            Building::Downloading { percent, what } => {
                let done = Some((percent.into(), 100));
                self.show("downloading packages", what, done);
            }
            Building::Unpacking {
                package,
                index,
                total,
            } => {
                self.show("unpacking", package, Some((index as u64, total as u64)));
            }
            Building::Compiling { what } => self.step("compiling", what),
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
