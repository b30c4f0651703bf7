//! What was measured of Linux machines, as Markdown.

use super::http::{CONNECTIONS, Sample, median_sample};
use super::{Kind, Linux, PATHS, SERVERS, SHELLS, Shell};
use crate::load::median;
use crate::report::{table, went_wrong};

impl Linux {
    /// The report, without the lines about the machine.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        if self.lane {
            text.push_str(
                "In the SVM lane: one emulated processor for all machines and the client, so that N replicas have 1/N of what one \
                 has, at most. Only ratios mean anything.\n\n",
            );
        }
        text.push_str(
            "\"plain\" is the same kernel, initial RAM disk and root disk in QEMU with KVM (`-M microvm`: virtio by MMIO as here, \
             user-mode network).\n\nSeconds from starting the process to a shell, median of all starts, and the ratio to the plain \
             machine:\n\n",
        );
        self.shells_table(&mut text);
        text.push_str(&format!(
            "\nnginx with three workers (`nginx-linux`), {CONNECTIONS} connections, answers per second (p50 / p99 in milliseconds), \
             medians of the rounds in turns, and the ratio to the plain machine; all answers were equal:\n\n",
        ));
        self.requests_table(&mut text);
        text.push('\n');
        went_wrong(&mut text, &self.failures);
        text
    }

    fn shells_table(&self, text: &mut String) {
        let head = ["shell", "starts"].map(str::to_owned).into_iter();
        let mut rows = vec![head.chain(SHELLS.map(Kind::name)).collect::<Vec<_>>()];
        for shell in Shell::ALL {
            let of = |kind| {
                let mut measured = self.shells.iter();
                let found = measured.find(|(which, who, _)| (*which, *who) == (shell, kind));
                found
                    .map(|(_, _, times)| times)
                    .filter(|times| !times.is_empty())
            };
            let plain = of(Kind::Plain).map(|times| median(times.iter().copied()));
            let cells = SHELLS.map(|kind| match (of(kind), plain) {
                (Some(times), Some(plain)) if kind != Kind::Plain => {
                    let after = median(times.iter().copied());
                    format!("{after:.1} ({:.2})", after / plain)
                }
                (Some(times), _) => format!("{:.1}", median(times.iter().copied())),
                (None, _) => "-".to_owned(),
            });
            let starts = of(Kind::Plain).map_or(0, Vec::len);
            rows.push(
                [
                    vec![shell.name().to_owned(), starts.to_string()],
                    cells.to_vec(),
                ]
                .concat(),
            );
        }
        let cells = SHELLS.map(|kind| {
            let mut answers = self.first_answer.iter();
            let found = answers.find(|(who, _)| *who == kind);
            found.map_or_else(|| "-".to_owned(), |(_, after)| format!("{after:.1}"))
        });
        let first = [
            "nginx' first answer, the servers above already running",
            "1",
        ];
        rows.push([first.map(str::to_owned).to_vec(), cells.to_vec()].concat());
        table(text, &rows);
    }

    fn samples(&self, path: &str, kind: Kind) -> &[Sample] {
        let mut measured = self.requests.iter();
        let found = measured.find(|(which, who, _)| *which == path && *who == kind);
        found.map_or(&[], |(_, _, samples)| samples)
    }

    fn requests_table(&self, text: &mut String) {
        let head = std::iter::once("path".to_owned());
        let mut rows = vec![head.chain(SERVERS.map(Kind::name)).collect::<Vec<_>>()];
        for path in PATHS {
            let plain = self.samples(path, Kind::Plain);
            let cells = SERVERS.map(|kind| {
                let samples = self.samples(path, kind);
                if samples.is_empty() {
                    return "-".to_owned();
                }
                let middle = median_sample(samples);
                let of_rounds = samples.iter().zip(plain);
                // Each round's ratio counts, so that load on the machine that changes from round to round does not.
                let ratio = median(of_rounds.map(|(own, plain)| own.per_second / plain.per_second));
                let figures = format!(
                    "{:.1} ({:.0} / {:.0})",
                    middle.per_second, middle.p50_ms, middle.p99_ms
                );
                match kind {
                    Kind::Plain => figures,
                    Kind::Replicas(_) => format!("{figures}, {ratio:.3}"),
                }
            });
            rows.push(std::iter::once(path.to_owned()).chain(cells).collect());
        }
        table(text, &rows);
    }
}
