//! What is behind I/O ports: the serial console, and the two ways to turn the machine off or have it begin again.

use super::map::{KEYBOARD, KEYBOARD_RESET, POWER, POWER_OFF, POWER_RESET, POWER_STATUS, SERIAL};
use quorate_abi::linux::{EXIT_PORT, wait_status};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};
use vmm_sys_util::eventfd::EventFd;

/// Most bytes of output that wait to be taken; what comes beyond is lost, as on a line that nobody listens to (R10).
pub(crate) const SERIAL_OUTPUT: usize = 256 << 10;
/// Most bytes of input that wait until the guest has read what came before; what comes beyond is lost (R10).
pub(crate) const SERIAL_INPUT: usize = 64 << 10;

/// What an access to a port asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing,
    /// There is output, and there was none before; or the program's status.
    Output,
    PowerOff,
    Reset,
}

/// The serial console as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortsState {
    /// Registers, by name in the 16550's manual: DLL, DLM, IER, IIR, LCR, LSR, MCR, MSR, SCR.
    pub registers: [u8; 9],
    /// What the guest has not read of its FIFO.
    pub fifo: Vec<u8>,
    /// What waits behind it.
    pub input: Vec<u8>,
    /// What was not taken yet.
    pub output: Vec<u8>,
    /// Status of the program, not taken yet.
    pub status: Option<u64>,
}

/// Pulses the serial port's interrupt line.
#[derive(Debug)]
pub(crate) struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Output that waits.
#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = SERIAL_OUTPUT - self.bytes.len().min(SERIAL_OUTPUT);
        let kept = room.min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..kept]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The ports of one machine.
#[derive(Debug)]
pub(crate) struct Ports {
    serial: Serial<Line, NoEvents, Output>,
    input: VecDeque<u8>,
    /// Wait status of the appliance's program, as `wait4` would report it.
    status: Option<u64>,
}

impl Ports {
    pub(crate) fn new(line: EventFd) -> Self {
        Self {
            serial: Serial::new(Line(line), Output::default()),
            input: VecDeque::new(),
            status: None,
        }
    }

    /// `out`. A port where nothing is takes everything.
    pub(crate) fn write(&mut self, port: u16, data: &[u8]) -> Asked {
        if port == EXIT_PORT
            && let Ok(value) = <[u8; 4]>::try_from(data)
        {
            // The first counts: a program ends once.
            let status = wait_status(u32::from_le_bytes(value));
            self.status.get_or_insert(status.into());
            return Asked::Output;
        }
        let &[value] = data else {
            return Asked::Nothing; // All else that is here is one byte wide.
        };
        match port {
            SERIAL..=SERIAL_LAST => {
                let before = self.serial.writer().bytes.is_empty();
                // It fails if the interrupt cannot be signalled, which an event file with room for 2^64 never does, or if the guest
                // fills the FIFO in loopback mode: its own loss.
                let _ = self.serial.write((port - SERIAL) as u8, value);
                match before && !self.serial.writer().bytes.is_empty() {
                    true => Asked::Output,
                    false => Asked::Nothing,
                }
            }
            KEYBOARD if value == KEYBOARD_RESET => Asked::Reset,
            POWER if value == POWER_RESET => Asked::Reset,
            POWER if value == POWER_OFF => Asked::PowerOff,
            _ => Asked::Nothing,
        }
    }

    /// `in`. A port where nothing is reads as all ones.
    pub(crate) fn read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let [value] = data else {
            return;
        };
        match port {
            SERIAL..=SERIAL_LAST => {
                *value = self.serial.read((port - SERIAL) as u8);
                if port == SERIAL {
                    self.feed();
                }
            }
            // Nothing is in its buffers.
            KEYBOARD | POWER_STATUS => *value = 0,
            _ => {}
        }
    }

    /// Bytes that somebody typed.
    pub(crate) fn input(&mut self, bytes: &[u8]) {
        let room = SERIAL_INPUT - self.input.len().min(SERIAL_INPUT);
        self.input.extend(&bytes[..room.min(bytes.len())]);
        self.feed();
    }

    /// Moves waiting input into the FIFO, as far as there is room.
    fn feed(&mut self) {
        if self.input.is_empty() {
            return;
        }
        let bytes = self.input.make_contiguous();
        // An error: no room, or loopback mode. What waits goes on waiting.
        if let Ok(taken) = self.serial.enqueue_raw_bytes(bytes) {
            self.input.drain(..taken);
        }
    }

    /// What the guest wrote since this was called last.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.serial.writer_mut().bytes)
    }

    /// The status of the appliance's program, once it has ended: what the guest said first since this was called last. Whoever takes one
    /// lets the machine go.
    pub(crate) fn take_status(&mut self) -> Option<u64> {
        self.status.take()
    }

    pub(crate) fn save(&self) -> PortsState {
        let state = self.serial.state();
        PortsState {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            fifo: state.in_buffer,
            input: self.input.iter().copied().collect(),
            output: self.serial.writer().bytes.clone(),
            status: self.status,
        }
    }

    /// Makes the ports what they were. False if the state cannot be one that [`Ports::save`] made.
    #[must_use]
    pub(crate) fn restore(&mut self, state: &PortsState) -> bool {
        if state.input.len() > SERIAL_INPUT || state.output.len() > SERIAL_OUTPUT {
            return false;
        }
        let [dll, dlm, ier, iir, lcr, lsr, mcr, msr, scr] = state.registers;
        let registers = SerialState {
            baud_divisor_low: dll,
            baud_divisor_high: dlm,
            interrupt_enable: ier,
            interrupt_identification: iir,
            line_control: lcr,
            line_status: lsr,
            modem_control: mcr,
            modem_status: msr,
            scratch: scr,
            in_buffer: state.fifo.clone(),
        };
        let Ok(line) = self.serial.interrupt_evt().0.try_clone() else {
            return false;
        };
        let output = Output {
            bytes: state.output.clone(),
        };
        let Ok(serial) = Serial::from_state(&registers, Line(line), NoEvents, output) else {
            return false;
        };
        self.serial = serial;
        self.input = state.input.iter().copied().collect();
        self.status = state.status;
        true
    }
}

const SERIAL_LAST: u16 = SERIAL + 7;
