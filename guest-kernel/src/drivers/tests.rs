//! The drivers against a device in the same process: physical addresses are pointers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::mmio::{F_VERSION_1, MAGIC, Window, register, status};
use super::*;
use crate::errno::{ENOMEM, Result};
use std::cell::{Cell, RefCell};

const DISK_SECTORS: u32 = 64 << 10;

/// Zeroed pages that are never freed, as `mm::alloc_dma` gives them.
fn alloc(pages: usize) -> Result<(*mut u8, u64)> {
    let layout = std::alloc::Layout::from_size_align(pages * 4096, 4096).unwrap();
    // SAFETY: the size is not zero.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    Ok((memory, memory as u64))
}

fn no_memory(_: usize) -> Result<(*mut u8, u64)> {
    Err(ENOMEM)
}

#[derive(Clone, Default)]
struct Queue {
    size: u32,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    taken: u16,
    given: u16,
}

/// A device of one kind, with its registers as the specification has them.
struct Device {
    id: u32,
    magic: u32,
    offered: u64,
    refuses: bool,
    largest: u32,
    accepted: Cell<u64>,
    status: Cell<u32>,
    select: Cell<u32>,
    feature_half: Cell<u32>,
    queues: RefCell<Vec<Queue>>,
}

impl Device {
    fn new(id: u32, queues: usize) -> Self {
        Self {
            id,
            magic: MAGIC,
            offered: F_VERSION_1 | 0xff,
            refuses: false,
            largest: 256,
            accepted: Cell::new(0),
            status: Cell::new(0),
            select: Cell::new(0),
            feature_half: Cell::new(0),
            queues: RefCell::new(vec![Queue::default(); queues]),
        }
    }

    fn read_at<T: Copy>(address: u64) -> T {
        // SAFETY: the driver gave the address of its memory.
        unsafe { (address as *const T).read_unaligned() }
    }

    fn write_at<T: Copy>(address: u64, value: T) {
        // SAFETY: as in `read_at`.
        unsafe { (address as *mut T).write_unaligned(value) }
    }

    /// Takes the next available buffer: (descriptor, address, length, writable).
    fn take(&self, index: usize) -> Option<(u16, u64, u32, bool)> {
        let queue = &mut self.queues.borrow_mut()[index];
        assert!(queue.ready);
        let published: u16 = Self::read_at(queue.available + 2);
        if queue.taken == published {
            return None;
        }
        let slot = u64::from(queue.taken) % u64::from(queue.size);
        let id: u16 = Self::read_at(queue.available + 4 + 2 * slot);
        queue.taken = queue.taken.wrapping_add(1);
        let at = queue.descriptors + 16 * u64::from(id);
        let flags: u16 = Self::read_at(at + 12);
        assert_eq!(flags & !2, 0, "no chains, no indirect descriptors");
        Some((id, Self::read_at(at), Self::read_at(at + 8), flags & 2 != 0))
    }

    fn give(&self, index: usize, id: u16, len: u32) {
        let queue = &mut self.queues.borrow_mut()[index];
        let slot = u64::from(queue.given) % u64::from(queue.size);
        Self::write_at(queue.used + 4 + 8 * slot, u32::from(id));
        Self::write_at(queue.used + 8 + 8 * slot, len);
        queue.given = queue.given.wrapping_add(1);
        Self::write_at(queue.used + 2, queue.given);
    }

    /// Takes all that the driver sent on a queue.
    fn drain(&self, index: usize) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while let Some((id, at, len, writable)) = self.take(index) {
            assert!(!writable);
            out.push((0..u64::from(len)).map(|i| Self::read_at(at + i)).collect());
            self.give(index, id, 0);
        }
        out
    }

    /// Puts bytes into the next buffer.
    fn fill(&self, index: usize, bytes: &[u8]) -> bool {
        let Some((id, at, len, writable)) = self.take(index) else {
            return false;
        };
        assert!(writable && bytes.len() <= len as usize);
        for (i, byte) in bytes.iter().enumerate() {
            Self::write_at(at + i as u64, *byte);
        }
        self.give(index, id, bytes.len() as u32);
        true
    }
}

impl Window for Device {
    fn read(&self, register: u32) -> u32 {
        let queue = self
            .queues
            .borrow()
            .get(self.select.get() as usize)
            .cloned();
        match register {
            register::MAGIC => self.magic,
            register::VERSION => 2,
            register::DEVICE_ID => self.id,
            register::DEVICE_FEATURES => (self.offered >> (32 * self.feature_half.get())) as u32,
            register::QUEUE_SIZE_MAX => queue.map_or(0, |_| self.largest),
            register::QUEUE_READY => queue.map_or(0, |q| q.ready.into()),
            register::STATUS => self.status.get(),
            // Of a disk: its size.
            register::CONFIG => DISK_SECTORS,
            r if r == register::CONFIG + 4 => 0,
            _ => panic!("read of register {register:#x}"),
        }
    }

    fn write(&self, register: u32, value: u32) {
        let mut queues = self.queues.borrow_mut();
        let set = |field: &mut u64, high: bool| {
            let shift = if high { 32 } else { 0 };
            *field |= u64::from(value) << shift;
        };
        match register {
            register::DEVICE_FEATURES_SEL | register::DRIVER_FEATURES_SEL => {
                self.feature_half.set(value)
            }
            register::DRIVER_FEATURES => {
                let bits = u64::from(value) << (32 * self.feature_half.get());
                self.accepted.set(self.accepted.get() | bits);
            }
            register::STATUS => {
                let refused = if self.refuses { status::FEATURES_OK } else { 0 };
                self.status.set(value & !refused);
            }
            register::QUEUE_SEL => self.select.set(value),
            _ => {
                let queue = &mut queues[self.select.get() as usize];
                match register {
                    register::QUEUE_SIZE => queue.size = value,
                    register::QUEUE_READY => queue.ready = value == 1,
                    register::QUEUE_DESC_LOW => set(&mut queue.descriptors, false),
                    register::QUEUE_DESC_HIGH => set(&mut queue.descriptors, true),
                    register::QUEUE_DRIVER_LOW => set(&mut queue.available, false),
                    register::QUEUE_DRIVER_HIGH => set(&mut queue.available, true),
                    register::QUEUE_DEVICE_LOW => set(&mut queue.used, false),
                    register::QUEUE_DEVICE_HIGH => set(&mut queue.used, true),
                    _ => panic!("write to register {register:#x}"),
                }
            }
        }
    }
}

/// A disk behind [`Device`]: works through the queue as the real one does.
struct FakeDisk {
    device: Device,
    bytes: RefCell<Vec<u8>>,
    /// Kinds of requests in the order in which they came.
    asked: RefCell<Vec<u32>>,
    /// Requests at this sector fail.
    bad_sector: Cell<u64>,
}

thread_local! {
    static DISK: RefCell<Option<std::rc::Rc<FakeDisk>>> = const { RefCell::new(None) };
}

impl FakeDisk {
    fn work(&self) {
        block::publish();
        while let Some(head) = self.next() {
            let (mut chain, mut at) = (Vec::new(), Some(head));
            let table = self.device.queues.borrow()[0].descriptors;
            while let Some(id) = at {
                let descriptor = table + 16 * u64::from(id);
                let flags: u16 = Device::read_at(descriptor + 12);
                let address: u64 = Device::read_at(descriptor);
                let len: u32 = Device::read_at(descriptor + 8);
                chain.push((address, len as usize, flags & 2 != 0));
                at = (flags & 1 != 0).then(|| Device::read_at(descriptor + 14));
            }
            self.serve(&chain);
            self.device.give(0, head, 1);
        }
        block::reclaim();
    }

    fn next(&self) -> Option<u16> {
        let queue = &mut self.device.queues.borrow_mut()[0];
        let published: u16 = Device::read_at(queue.available + 2);
        if queue.taken == published {
            return None;
        }
        let slot = u64::from(queue.taken) % u64::from(queue.size);
        queue.taken = queue.taken.wrapping_add(1);
        Some(Device::read_at(queue.available + 4 + 2 * slot))
    }

    fn serve(&self, chain: &[(u64, usize, bool)]) {
        let (header, len, writable) = chain[0];
        assert!(len == 16 && !writable);
        let kind: u32 = Device::read_at(header);
        let sector: u64 = Device::read_at(header + 8);
        self.asked.borrow_mut().push(kind);
        let (status, len, writable) = chain[chain.len() - 1];
        assert!(len == 1 && writable);
        let mut bytes = self.bytes.borrow_mut();
        let mut at = sector as usize * 512;
        for (address, len, writable) in &chain[1..chain.len() - 1] {
            assert_eq!(*writable, kind == 0);
            let disk = &mut bytes[at..at + len];
            let memory = *address as *mut u8;
            // SAFETY: the driver gave the address of its buffer, which is as long as it says.
            unsafe {
                if kind == 0 {
                    core::ptr::copy_nonoverlapping(disk.as_ptr(), memory, *len);
                } else {
                    core::ptr::copy_nonoverlapping(memory, disk.as_mut_ptr(), *len);
                }
            }
            at += len;
        }
        let bad = self.bad_sector.get() == sector && kind != 4;
        Device::write_at(status, u8::from(bad));
    }
}

#[test]
fn a_disk_gets_requests_in_order_and_fails_the_flush_for_a_failed_write() {
    use crate::fs::disk::device::{BlockDevice, Failed};
    let _lock = crate::cell::test_lock();
    let fake = std::rc::Rc::new(FakeDisk {
        device: Device {
            offered: F_VERSION_1 | 1 << 9,
            ..Device::new(2, 1)
        },
        bytes: RefCell::new(vec![0; 512 * DISK_SECTORS as usize]),
        asked: RefCell::default(),
        bad_sector: Cell::new(u64::MAX),
    });
    block::init(7, &fake.device, alloc).unwrap();
    let disk = block::disk(7).unwrap();
    assert_eq!((disk.bytes(), disk.read_only()), (32 << 20, false));
    DISK.with(|d| *d.borrow_mut() = Some(fake.clone()));
    *block::TEST_DEVICE.borrow_mut() = Some(|| {
        DISK.with(|d| d.borrow().as_ref().unwrap().work());
    });
    // More writes than there are slots, of all sizes; then a read that sees them and a flush behind them.
    let sizes = [512, 4096, 16 << 10, 64 << 10, 1 << 20];
    let mut sector = 0;
    for (i, size) in sizes.iter().cycle().take(200).enumerate() {
        sector = sector * 7 % 60_000 + 1;
        disk.write(sector, &vec![i as u8; *size]).unwrap();
    }
    let last = sizes[199 % 5];
    let mut got = vec![0; last];
    disk.read(sector, &mut got).unwrap();
    assert_eq!(got, vec![199; last]);
    disk.flush().unwrap();
    {
        let asked = fake.asked.borrow();
        assert!(asked[..200].iter().all(|k| *k == 1));
        assert_eq!(asked[200..], [0, 4]);
    }
    fake.bad_sector.set(99);
    disk.write(99, &[1; 512]).unwrap();
    assert_eq!(disk.flush(), Err(Failed));
    assert_eq!(disk.write(5, &[1; 512]), Err(Failed));
    assert_eq!(disk.read(99, &mut [0; 512]), Err(Failed));
    disk.read(5, &mut [0; 512]).unwrap();
    *block::TEST_DEVICE.borrow_mut() = None;
    block::forget_all();
}

#[test]
fn negotiation_takes_what_is_wanted_and_refuses_the_rest() {
    let device = Device::new(1, 2);
    assert_eq!(mmio::negotiate(&device, 1, 0x28), Ok(F_VERSION_1 | 0x28));
    assert_eq!(device.accepted.get(), F_VERSION_1 | 0x28);
    assert_eq!(
        mmio::negotiate(&device, 4, 0),
        Err(InitError::WrongDevice(1))
    );
    let broken = Device {
        magic: 0,
        ..Device::new(1, 2)
    };
    assert_eq!(mmio::negotiate(&broken, 1, 0), Err(InitError::NotVirtio));
    let legacy = Device {
        offered: 1,
        ..Device::new(1, 2)
    };
    assert_eq!(mmio::negotiate(&legacy, 1, 0), Err(InitError::Features(1)));
    let stubborn = Device {
        refuses: true,
        ..Device::new(1, 2)
    };
    assert_eq!(
        mmio::negotiate(&stubborn, 1, 0),
        Err(InitError::FeaturesRefused)
    );
    let failed = status::ACKNOWLEDGE | status::DRIVER | status::FAILED;
    assert_eq!(stubborn.status.get(), failed);
    assert!(matches!(
        mmio::queue(&device, 2, 16, alloc),
        Err(InitError::Queue(2))
    ));
    assert!(matches!(
        mmio::queue(&device, 0, 16, no_memory),
        Err(InitError::Memory)
    ));
    let odd = Device {
        largest: 100,
        ..Device::new(1, 2)
    };
    assert_eq!(
        mmio::queue(&odd, 0, 256, alloc).map(|q| q.size()).ok(),
        Some(64)
    );
}

#[test]
fn rings_wrap_around() {
    let device = Device::new(1, 1);
    let mut queue = mmio::queue(&device, 0, 4, alloc).unwrap();
    let (_, buffer) = alloc(1).unwrap();
    for id in 0..4 {
        queue.describe(id, buffer + u64::from(id), 1, true);
    }
    for round in 0..100_000u32 {
        let id = (round % 4) as u16;
        queue.push(id);
        assert_eq!(device.take(0), None, "not before it is published");
        queue.publish();
        assert_eq!(device.take(0), Some((id, buffer + u64::from(id), 1, true)));
        assert_eq!(queue.pop_used(), None);
        device.give(0, id, round);
        assert_eq!(queue.pop_used(), Some((id, round)));
    }
}

#[test]
fn frames_go_out_and_come_in() {
    let _lock = crate::cell::test_lock();
    let device = Device::new(1, 2);
    assert_eq!(net::init(&device, alloc), Ok(()));
    assert_eq!(device.status.get() & status::DRIVER_OK, status::DRIVER_OK);
    let send = |frame: &[u8]| match net::reserve(frame.len()) {
        Some(buffer) => {
            buffer.copy_from_slice(frame);
            net::commit();
            true
        }
        None => false,
    };
    let header = [0u8; 12];
    let frames = [
        vec![1u8; 60],
        vec![2; 2036],
        vec![3; 2037],
        vec![4; quorate_abi::net::MAX_FRAME],
    ];
    for _ in 0..3 {
        for frame in &frames {
            assert!(send(frame));
        }
        // A reservation that is not committed costs nothing.
        assert!(net::reserve(100).is_some());
        assert!(device.drain(1).is_empty());
        net::publish();
        let wanted: Vec<Vec<u8>> = frames.iter().map(|f| [&header, &f[..]].concat()).collect();
        assert!(device.drain(1) == wanted);
        net::reclaim();
    }
    assert!(net::reserve(quorate_abi::net::MAX_FRAME + 1).is_none());
    // Until the ring is full, and then again.
    for _ in 0..2 {
        let mut count = 0;
        while send(&[9; 100]) {
            count += 1;
        }
        assert_eq!(count, 256);
        assert!(!net::room());
        net::publish();
        assert_eq!(device.drain(1).len(), 256);
        net::reclaim();
        assert!(net::room());
    }
    // Receiving: all buffers are posted, and posted again.
    let mut received = Vec::new();
    for round in 0..600u32 {
        net::publish();
        assert!(device.fill(0, &[&header, &round.to_le_bytes()[..]].concat()));
        if round % 100 == 99 {
            // Longer than it can be: the device is broken, the driver is not.
            net::publish();
            let (id, ..) = device.take(0).unwrap();
            device.give(0, id, 5);
            net::poll_receive(|frame| received.push(frame.to_vec()));
        }
    }
    net::poll_receive(|frame| received.push(frame.to_vec()));
    let wanted: Vec<Vec<u8>> = (0..600u32).map(|r| r.to_le_bytes().to_vec()).collect();
    assert!(received == wanted);
}

#[test]
fn console_bytes_gather_until_the_boundary() {
    let _lock = crate::cell::test_lock();
    let device = Device::new(3, 2);
    assert_eq!(console::init(&device, alloc), Ok(()));
    console::write(b"hello ");
    console::write(b"world\n");
    let long = vec![b'x'; 10_000];
    console::write(&long);
    assert!(device.drain(1).is_empty());
    console::publish();
    let out = device.drain(1);
    assert_eq!(out.len(), 3);
    assert!(out.concat() == [b"hello world\n", &long[..]].concat());
    console::reclaim();
    for _ in 0..20 {
        console::write(b"line\n");
        console::publish();
        assert_eq!(device.drain(1), [b"line\n"]);
        console::reclaim();
    }
}

#[test]
fn the_entropy_device_seeds_the_generator() {
    let _lock = crate::cell::test_lock();
    let device = Device::new(4, 1);
    assert_eq!(entropy::init(&device, alloc), Ok(()));
    entropy::publish();
    // Too little first: it is asked again.
    assert!(device.fill(0, &[7; 5]));
    entropy::reclaim();
    entropy::publish();
    assert!(device.fill(0, &[8; 32]));
    entropy::reclaim();
    entropy::publish();
    assert_eq!(device.take(0), None, "one seed is enough");
    let mut bytes = [0; 64];
    entropy::fill(&mut bytes);
    assert!(bytes.iter().any(|b| *b != 0));
    // After a mebibyte it is asked for more.
    entropy::fill(&mut vec![0; 1 << 20]);
    entropy::publish();
    assert!(device.fill(0, &[9; 32]));
    entropy::reclaim();
}
