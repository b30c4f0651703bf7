//! A guest under the debugger.

use super::guest::Does;
use super::machine::{boundary, entry, machine};
use crate::*;

/// The fingerprint of a boundary.
fn shown(outcome: Outcome) -> [u64; 2] {
    match boundary(outcome).outputs.as_slice() {
        [Output::Fingerprint { digest, .. }] => *digest,
        other => panic!("{other:?}"),
    }
}

fn at_boundary(stop: DebugStop) -> [u64; 2] {
    match stop {
        DebugStop::Other(outcome) => shown(outcome),
        other => panic!("{other:?}"),
    }
}

fn debugged(does: Does) -> Machine {
    let mut machine = machine(does);
    machine.debug_attach(None);
    machine
}

fn pc(machine: &Machine) -> u64 {
    machine.debug_registers().unwrap().rip
}

fn step(machine: &mut Machine) -> u64 {
    assert_eq!(machine.debug_run(Motion::Step).unwrap(), DebugStop::Stepped);
    pc(machine)
}

/// What the guest shows without a debugger: flags included.
fn alone() -> Vec<[u64; 2]> {
    let mut machine = machine(Does::Counts);
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(shown(machine.run()));
        machine.resume(&entry(1), &mut NoDisks).unwrap();
    }
    seen
}

#[test]
fn single_steps_execute_one_instruction_each_and_are_not_seen() {
    let mut machine = debugged(Does::Counts);
    assert_eq!(machine.debug_hold().unwrap(), None);
    let start = pc(&machine);
    let mut seen = Vec::new();
    let mut path = Vec::new();
    while seen.len() < 4 {
        match machine.debug_run(Motion::Step).unwrap() {
            DebugStop::Stepped => path.push(pc(&machine) - start),
            DebugStop::Other(outcome) => {
                seen.push(shown(outcome));
                machine.resume(&entry(1), &mut NoDisks).unwrap();
            }
            DebugStop::Breakpoint => panic!("there is none"),
        }
        assert_eq!(machine.debug_registers().unwrap().rflags & 1 << 8, 0);
    }
    assert_eq!(seen, alone());
    // mov, two xor; then inc, nop, cmp, jne five times over; pushfq, pop, two mov, mov, mov, out, and so on.
    let head = path[2];
    assert_eq!(path[..3], [7, 9, 12], "{path:x?}");
    for round in 0..5 {
        let round = &path[2 + 4 * round..6 + 4 * round];
        assert_eq!(round, [head, head + 3, head + 4, head + 8]);
    }
    assert_eq!(path[22], head + 10);
    let again = path.iter().filter(|&&at| at == head).count();
    assert_eq!(again, 10, "the loop was passed twice");
}

#[test]
fn a_breakpoint_stops_at_every_pass_and_is_not_seen() {
    let mut machine = debugged(Does::Counts);
    assert_eq!(machine.debug_hold().unwrap(), None);
    for _ in 0..3 {
        step(&mut machine);
    }
    let head = pc(&machine);
    let mut code = [0; 8];
    assert_eq!(machine.read_virtual(head, &mut code), 8);
    machine.debug_breakpoints([head]).unwrap();
    // The first pass is where it is now.
    for pass in 1..5 {
        let stop = machine.debug_run(Motion::Continue).unwrap();
        assert_eq!(stop, DebugStop::Breakpoint);
        let registers = machine.debug_registers().unwrap();
        assert_eq!((registers.rip, registers.rcx), (head, pass));
        assert_eq!(registers.cpl(), 3);
        let mut now = [0; 8];
        assert_eq!(machine.read_virtual(head, &mut now), 8);
        assert_eq!(now, code, "the breakpoint itself is hidden");
    }
    let alone = alone();
    let first = at_boundary(machine.debug_run(Motion::Continue).unwrap());
    assert_eq!(first, alone[0]);
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    machine.debug_breakpoints([]).unwrap();
    let second = at_boundary(machine.debug_run(Motion::Continue).unwrap());
    assert_eq!(second, alone[1]);
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    machine.debug_detach().unwrap();
    assert_eq!(shown(machine.run()), alone[2]);
}

#[test]
fn a_breakpoint_at_the_instruction_that_rings_is_left_behind() {
    let mut machine = debugged(Does::Counts);
    assert_eq!(machine.debug_hold().unwrap(), None);
    let out = loop {
        let mut code = [0];
        let at = pc(&machine);
        assert_eq!(machine.read_virtual(at, &mut code), 1);
        if code == [0xef] {
            break at;
        }
        step(&mut machine);
    };
    machine.debug_breakpoints([out]).unwrap();
    let alone = alone();
    let first = at_boundary(machine.debug_run(Motion::Continue).unwrap());
    assert_eq!(first, alone[0]);
    assert_eq!(machine.debug_out().unwrap(), out);
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    let second = at_boundary(machine.debug_run(Motion::Continue).unwrap());
    assert_eq!(second, alone[1]);
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    // Round again.
    let stop = machine.debug_run(Motion::Continue).unwrap();
    assert_eq!((stop, pc(&machine)), (DebugStop::Breakpoint, out));
}

#[test]
fn registers_and_memory_can_be_changed() {
    let mut machine = debugged(Does::Counts);
    assert_eq!(machine.debug_hold().unwrap(), None);
    let mut registers = machine.debug_registers().unwrap();
    assert_eq!(
        step(&mut machine),
        registers.rip + 7,
        "the first instruction"
    );
    let page = machine.debug_registers().unwrap().rax;
    step(&mut machine);
    step(&mut machine);
    registers = machine.debug_registers().unwrap();
    registers.rcx = 3;
    registers.r12 = 1000;
    registers.rflags |= 1 << 11;
    machine.debug_set_registers(&registers).unwrap();
    assert_eq!(machine.debug_registers().unwrap(), registers);
    let mut fpu = machine.debug_fpu().unwrap();
    fpu.xmm[3] = [7; 16];
    machine.debug_set_fpu(&fpu).unwrap();
    machine.write_virtual(registers.rsp - 64, b"hello").unwrap();
    let mut back = [0; 5];
    assert_eq!(machine.read_virtual(registers.rsp - 64, &mut back), 5);
    assert_eq!(&back, b"hello");
    assert_eq!(machine.read_virtual(0x1000, &mut back), 0);
    assert!(machine.write_virtual(0x1000, b"x").is_err());
    assert_eq!(machine.read_virtual(page, &mut back), 5, "the sync page");
    at_boundary(machine.debug_run(Motion::Continue).unwrap());
    assert_eq!(machine.debug_fpu().unwrap().xmm[3], [7; 16]);
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    let second = at_boundary(machine.debug_run(Motion::Continue).unwrap());
    assert_eq!(second, [77, 1005]);
}

#[test]
fn the_programs_own_int3_goes_to_its_handler() {
    let mut machine = debugged(Does::Breakpoint);
    let stop = machine.debug_run(Motion::Continue).unwrap();
    let DebugStop::Other(outcome) = stop else {
        panic!("{stop:?}")
    };
    let boundary = boundary(outcome);
    let expected = Output::Fingerprint {
        digest: [0, 0],
        syscalls: 33,
    };
    assert_eq!(boundary.outputs, [expected]);
}

#[test]
fn a_step_over_syscall_leads_into_the_kernel() {
    let mut machine = debugged(Does::Syscall);
    step(&mut machine);
    let before = machine.debug_registers().unwrap();
    let inside = step(&mut machine);
    let after = machine.debug_registers().unwrap();
    assert_eq!(after.rcx, before.rip + 2);
    assert_eq!(after.r11, before.rflags);
    assert_eq!(after.rip, inside);
    assert_eq!(after.cpl(), 3);
    let stop = machine.debug_run(Motion::Continue).unwrap();
    let DebugStop::Other(outcome) = stop else {
        panic!("{stop:?}")
    };
    match boundary(outcome).outputs.as_slice() {
        [Output::Fingerprint { syscalls, .. }] => assert_eq!(*syscalls, 1, "rcx is right"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_kick_ends_a_run_and_the_guest_can_be_held_there() {
    let mut machine = debugged(Does::Spin);
    machine.kicker().kick();
    let stop = machine.debug_run(Motion::Continue).unwrap();
    assert_eq!(stop, DebugStop::Other(Outcome::Kicked));
    assert_eq!(machine.debug_hold().unwrap(), None);
    let spin = pc(&machine);
    assert_eq!(step(&mut machine), spin);
}

#[test]
fn bounds_and_places_of_breakpoints() {
    let mut machine = debugged(Does::Counts);
    assert!(machine.debug_breakpoints(0x10_0000..0x10_0400).is_ok());
    let too_many = machine.debug_breakpoints(0x10_0000..0x10_0401);
    assert!(matches!(too_many, Err(MachineError::Breakpoints(1024))));
    let handler = machine.boot.vectors.0;
    let refused = machine.debug_breakpoints([handler]);
    assert!(matches!(refused, Err(MachineError::BreakpointPlace(at)) if at == handler));
    let registers = machine.registers().unwrap();
    assert!(matches!(
        machine.debug_set_registers(&registers),
        Err(MachineError::NotHeld)
    ));
    machine.debug_detach().unwrap();
    assert!(matches!(
        machine.debug_run(Motion::Step),
        Err(MachineError::NoDebugger)
    ));
}
