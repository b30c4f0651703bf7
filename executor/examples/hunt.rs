//! Hunts for what depends on the layout (R8): records a run of one replica under a load, replays its journal in many other
//! layouts, and names the first boundary at which one differs.
//!
//! `hunt APPLIANCE.toml HOST:GUEST LAYOUTS COMMAND…`: runs COMMAND against the appliance, whose port GUEST is published at
//! 127.0.0.1:HOST. With
//! `QUORATE_KERNEL_TRACE` naming a kernel built with its `trace` feature, the system calls of that boundary are shown from both.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use quorate_devices::NoDisks;
use quorate_executor::console::Console;
use quorate_executor::egress::Item;
use quorate_executor::launch::{Hooks, Options, Plan};
use quorate_executor::replica::{Turn, Vcpu};
use quorate_images::Appliance;
use quorate_vmm::{Entry, Output, open_kvm};
use std::sync::{Arc, Mutex};

type Trace = Vec<([u64; 2], u64)>;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let appliance = Appliance::load(std::path::Path::new(&args[1])).unwrap();
    let layouts: usize = args[3].parse().unwrap();
    let options = Options {
        replicas: Some(1),
        publish: vec![args[2].parse().unwrap()],
        ..Options::default()
    };
    let mut plan = Plan::new(&appliance, &options, &|_| {}).unwrap();
    let entries: Arc<Mutex<Vec<Arc<Entry>>>> = Arc::default();
    let kept = Arc::clone(&entries);
    let running = plan
        .clone()
        .start(Hooks {
            events: Box::new(|_| {}),
            console: Arc::new(Console::start(std::io::sink()).unwrap()),
            recorder: None,
            tap: Some(Box::new(move |item| {
                if let Item::Entry { entry, .. } = item {
                    kept.lock().unwrap().push(Arc::clone(entry));
                }
            })),
        })
        .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let status = std::process::Command::new(&args[4])
        .args(&args[5..])
        .status();
    println!("load: {status:?}");
    running.set.handle().stop(false);
    running.wait();
    let entries = entries.lock().unwrap().clone();
    println!("{} entries", entries.len());
    let reference = run(&plan, 0, &entries, u64::MAX).0;
    for layout in 1..layouts {
        let other = run(&plan, layout, &entries, u64::MAX).0;
        let differs = reference.iter().zip(&other).position(|(a, b)| a != b);
        println!("layout {layout}: {differs:?} of {} boundaries", other.len());
        if let Some(at) = differs {
            println!(
                "calls: {} and {}, before: {}",
                reference[at].1,
                other[at].1,
                reference[at - 1].1
            );
            if let Ok(kernel) = std::env::var("QUORATE_KERNEL_TRACE") {
                plan.machine.kernel = std::fs::read(kernel).unwrap().into();
                let window = format!(
                    "QUORATE_TRACE={}-{}",
                    reference[at - 1].1,
                    other[at].1.max(reference[at].1)
                );
                plan.machine.program.envp.push(window);
                for l in [0, layout] {
                    std::fs::write(
                        format!("/tmp/hunt-{l}.txt"),
                        run(&plan, l, &entries, at as u64).1,
                    )
                    .unwrap();
                }
                println!("see /tmp/hunt-0.txt and /tmp/hunt-{layout}.txt");
                return;
            }
        }
    }
}

fn run(plan: &Plan, layout: usize, entries: &[Arc<Entry>], last: u64) -> (Trace, Vec<u8>) {
    let kvm = open_kvm().unwrap();
    let mut vcpu = plan
        .build(&kvm, 0, plan.set.seed.layout(layout, 7))
        .unwrap();
    let (mut trace, mut console) = (Vec::new(), Vec::new());
    loop {
        match vcpu.run() {
            Turn::Boundary { outputs, .. } => {
                for output in outputs {
                    match output {
                        Output::Fingerprint { digest, syscalls } => trace.push((digest, syscalls)),
                        Output::Console(text) => console.extend(text),
                        _ => {}
                    }
                }
            }
            Turn::Kicked => continue,
            other => {
                println!("{other:?}");
                return (trace, console);
            }
        }
        let at = trace.len() as u64 - 1;
        match entries.get(at as usize) {
            Some(entry) if at < last => vcpu.resume(entry, &mut NoDisks).unwrap(),
            _ => return (trace, console),
        }
    }
}
