//! A plan on a card: its launches made ready, and run.

use super::carrier::{self, CudaCarrier, Way};
use super::driver::{Call, Driver, Event, Function, Recording, Stream};
use super::matmul::{Matmul, Multiply, Product, WORKSPACE_BYTES};
use crate::arena::Arena;
use crate::far::{Carrier, Files, HostMemory, Span};
use crate::gpu::{
    Dense, Device, Failure, GpuError, Kernel, Launch, Operand, Part, STAGING_BYTES, Tables, Work, launches,
};
use crate::runner::RunError;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use tinyforge_kernels::f32::optimizer::{SIGNED, UNSIGNED};
use tinyforge_plan::{Entry as PlanEntry, Named, Plan, Step, Tensor};

/// Bytes of the status; the tables lie behind it.
const STATUS_BYTES: u64 = 256;
/// Bytes of the tables.
const TABLE_BYTES: u64 = 2560;

/// What the card is told for a part of a step.
#[derive(Clone, Debug)]
enum Order {
    Launch(Call),
    Multiply(Multiply),
}

impl Order {
    fn give(&self, driver: &dyn Driver) -> Result<(), String> {
        match self {
            Order::Launch(call) => driver.launch(call),
            Order::Multiply(multiply) => driver.multiply(multiply),
        }
    }
}

/// What an entry is made of, by step.
type Code = Vec<Vec<Order>>;

/// Nanoseconds and runs of every step of an entry.
type Times = Vec<(u64, u64)>;

/// Plans on a card.
pub(crate) struct CudaDevice {
    driver: Arc<dyn Driver>,
    name: String,
    places: Places,
    /// Bytes of pinned memory for what goes up; what comes down lies behind them.
    up_bytes: u64,
    down_bytes: u64,
    /// First byte of pinned memory that moves between files and the card go through, and of what rests there.
    slots_first: u64,
    host_first: u64,
    /// Everything before it is on the card; everything before it is computed; everything before it has come down.
    uploaded: Event,
    computed: Event,
    arrived: Event,
    /// By phase and entry.
    code: Vec<Vec<Code>>,
    /// By phase and entry.
    recorded: Vec<Vec<Recorded>>,
    /// Where times are counted.
    clock: Option<Clock>,
}

/// How far an entry is recorded. What changes from run to run lies in the card's memory, so that a recording is always
/// the same launches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Recorded {
    /// It never is: it streams, its steps are timed, or the driver cannot.
    Never,
    /// It will be once it has run: then all that its launches need is loaded.
    BeforeFirst,
    /// It will be now.
    Next,
    /// It is.
    Done(Recording),
}

/// Times of steps, by what the card's events tell: nobody waits for a step.
struct Clock {
    /// By phase and entry.
    times: Vec<Vec<Times>>,
    /// Before and behind every step of the longest entry.
    events: Vec<[Event; 2]>,
    /// Steps of the entry that runs whose times were not read yet.
    launched: Vec<usize>,
}

impl Clock {
    fn new(driver: &dyn Driver, code: &[Vec<Code>]) -> Result<Clock, String> {
        let zeros = |c: &Code| vec![(0, 0); c.len()];
        let longest = code.iter().flatten().map(Vec::len).max().unwrap_or(0);
        let pair = |_| Ok([driver.timer()?, driver.timer()?]);
        Ok(Clock {
            times: code.iter().map(|p| p.iter().map(zeros).collect()).collect(),
            events: (0..longest).map(pair).collect::<Result<_, String>>()?,
            launched: Vec::with_capacity(longest),
        })
    }

    /// Adds the times of steps that have ended.
    fn read(&mut self, driver: &dyn Driver, at: (usize, usize)) -> Result<(), String> {
        for step in self.launched.drain(..) {
            let [from, to] = self.events[step];
            let (ns, runs) = &mut self.times[at.0][at.1][step];
            *ns += driver.elapsed_ns(from, to)?;
            *runs += 1;
        }
        Ok(())
    }
}

/// Where the plan's addresses are on the card: in one allocation, the status, the tables and the workspace of products
/// behind them.
#[derive(Clone, Copy)]
pub(super) struct Places {
    base: u64,
    start: u64,
    arena_bytes: u64,
}

impl Places {
    /// The card's address of one of the plan's.
    pub(super) fn of(&self, address: u64) -> u64 {
        self.base + (address - self.start)
    }

    fn status(&self) -> u64 {
        self.base + self.arena_bytes
    }

    fn tables(&self) -> u64 {
        self.status() + STATUS_BYTES
    }

    fn operand(&self, step: &Step, operand: Operand) -> u64 {
        match operand {
            Operand::Arg(i) => self.of(step.args[i].offset),
            Operand::Out(i) => self.of(step.outs[i].offset),
            Operand::Scratch(first, _) => self.of(step.scratch_offset + first),
            Operand::Table(Tables::Codes) => self.tables(),
        }
    }

    fn workspace(&self) -> u64 {
        self.tables() + TABLE_BYTES
    }

    fn call(
        &self,
        (number, step): (usize, &Step),
        launch: &Launch,
        (function, threads): (Function, u32),
        grid: [u32; 3],
    ) -> Call {
        let operands = launch.operands.iter().map(|&operand| self.operand(step, operand));
        Call {
            function,
            threads,
            grid,
            params: launch.params.of_step(number as u32),
            pointers: [self.status()].into_iter().chain(operands).collect(),
        }
    }

    fn multiply(&self, step: &Step, dense: &Dense, product: Product) -> Multiply {
        let at = |operand: Operand, first: usize, bytes: u64| self.operand(step, operand) + first as u64 * bytes;
        let [left, right] = dense.factors.map(|f| at(f.operand, f.first, dense.dtype.block_bytes()));
        let d = at(dense.to, dense.to_first, 4);
        Multiply {
            product,
            a: right,
            b: left,
            c: dense.acc.map_or(d, |acc| at(acc, dense.to_first, 4)),
            d,
            bias: dense.bias.map_or(0, |bias| at(bias, 0, 4)),
            alpha: dense.alpha,
            beta: if dense.acc.is_some() { 1.0 } else { 0.0 },
            workspace: self.workspace(),
        }
    }
}

/// Kernels and products of a card, each made ready once.
struct Ready<'a> {
    driver: &'a dyn Driver,
    has_units: bool,
    rounds_to_tf32: bool,
    functions: BTreeMap<Kernel, (Function, u32)>,
    products: BTreeMap<Matmul, Option<Product>>,
}

impl Ready<'_> {
    fn function(&mut self, kernel: Kernel) -> Result<(Function, u32), String> {
        match self.functions.entry(kernel) {
            Entry::Occupied(known) => Ok(*known.get()),
            Entry::Vacant(place) => Ok(*place.insert(self.driver.function(kernel)?)),
        }
    }

    fn product(&mut self, dense: &Dense) -> Result<Option<Product>, String> {
        let matmul = Matmul::of(dense, self.rounds_to_tf32);
        match self.products.entry(matmul) {
            Entry::Occupied(known) => Ok(*known.get()),
            Entry::Vacant(place) => Ok(*place.insert(self.driver.product(&matmul)?)),
        }
    }

    /// What a step becomes: by the library where it has all of the products, else launches.
    fn orders(&mut self, places: &Places, number: usize, step: &Step, work: &Work) -> Result<Vec<Order>, String> {
        let fits = |scratch_bytes| scratch_bytes <= step.scratch_bytes;
        if let Some(parts) = work.by_library.as_ref().filter(|parts| fits(parts.scratch_bytes)) {
            let order = |part| self.order(places, (number, step), part);
            if let Some(orders) = parts.list.iter().map(order).collect::<Result<Option<_>, _>>()? {
                return Ok(orders);
            }
        }
        work.launches.iter().map(|launch| self.launch(places, (number, step), launch)).collect()
    }

    fn launch(&mut self, places: &Places, step: (usize, &Step), launch: &Launch) -> Result<Order, String> {
        let (kernel, grid) = launch.on(self.has_units);
        Ok(Order::Launch(places.call(step, launch, self.function(kernel)?, grid)))
    }

    /// A part; none where the library has no such product.
    fn order(&mut self, places: &Places, (number, step): (usize, &Step), part: &Part) -> Result<Option<Order>, String> {
        Ok(match part {
            Part::Launch(launch) => Some(self.launch(places, (number, step), launch)?),
            Part::Dense(dense) => self.product(dense)?.map(|p| Order::Multiply(places.multiply(step, dense, p))),
        })
    }
}

fn entries<'a>(plans: &'a [&Plan]) -> impl Iterator<Item = &'a PlanEntry> {
    plans.iter().flat_map(|p| &p.entries)
}

/// What the steps of some plans become, by plan and entry.
fn code(
    driver: &dyn Driver,
    places: &Places,
    (plans, works): (&[&Plan], &[Vec<Vec<Work>>]),
    has_units: bool,
    rounds_to_tf32: bool,
) -> Result<Vec<Vec<Code>>, String> {
    let mut ready = Ready { driver, has_units, rounds_to_tf32, functions: BTreeMap::new(), products: BTreeMap::new() };
    let mut of_entry = |entry: &PlanEntry, works: &[Work]| {
        let steps = entry.steps.iter().zip(works).enumerate();
        steps.map(|(number, (step, work))| ready.orders(places, number, step, work)).collect::<Result<Code, _>>()
    };
    let mut of_plan = |(plan, works): (&&Plan, &Vec<Vec<Work>>)| {
        plan.entries.iter().zip(works).map(|(entry, works)| of_entry(entry, works)).collect()
    };
    plans.iter().zip(works).map(&mut of_plan).collect()
}

/// Bytes of named tensors on their way.
fn moved_bytes(named: &[Named]) -> u64 {
    named.iter().map(|n| staged(&n.tensor)).sum()
}

/// Bytes of a tensor in pinned memory.
fn staged(t: &Tensor) -> u64 {
    t.bytes().next_multiple_of(16)
}

impl CudaDevice {
    /// Makes everything that runs of these plans need.
    ///
    /// # Errors
    /// The card is too small, or its driver refuses.
    pub(crate) fn new(
        driver: Box<dyn Driver>,
        plans: &[&Plan],
        count_times: bool,
        rounds_to_tf32: bool,
    ) -> Result<CudaDevice, GpuError> {
        let driver: Arc<dyn Driver> = Arc::from(driver);
        let facts = driver.facts().map_err(|why| GpuError::Lost { device: "cuda".to_string(), why })?;
        let name = facts.name.clone();
        let lost = |why| GpuError::Lost { device: name.clone(), why };
        let works = plans.iter().map(|p| launches(p)).collect::<Result<Vec<_>, _>>().map_err(lost)?;
        let has_products = facts.library.is_ok();
        let arena_bytes = plans.iter().map(|p| p.arena_bytes()).max().unwrap_or(0).next_multiple_of(256);
        let workspace_bytes = if has_products { WORKSPACE_BYTES } else { 0 };
        let bytes = arena_bytes + STATUS_BYTES + TABLE_BYTES + workspace_bytes;
        let refused = |what, bytes| {
            let (device, free) = (name.clone(), facts.free_bytes);
            move |why: String| GpuError::Memory { what, bytes, device, why: format!("has {free} free and says: {why}") }
        };
        let base = driver.allocate(bytes).map_err(refused("the plan's tensors", bytes))?;
        let places = Places { base, start: plans[0].arena_start(), arena_bytes };
        let up = entries(plans).map(|e| moved_bytes(&e.inputs)).max().unwrap_or(0);
        let down = entries(plans).map(|e| moved_bytes(&e.results)).max().unwrap_or(0);
        let [up_bytes, down_bytes] = [up, STATUS_BYTES + down].map(|b| b.max(STAGING_BYTES).next_multiple_of(256));
        let is_streamed = plans.iter().any(|p| p.arena_start() > 0);
        let slots_first = up_bytes + down_bytes;
        let host_first = slots_first + if is_streamed { carrier::SLOTS * driver.chunk_bytes() } else { 0 };
        let pinned = host_first + plans.iter().map(|p| p.host_bytes()).max().unwrap_or(0);
        driver.pin(pinned).map_err(|why| GpuError::Pinned { bytes: pinned, device: name.clone(), why })?;
        let event = || driver.event().map_err(lost);
        let (uploaded, computed, arrived) = (event()?, event()?, event()?);
        let code = code(&*driver, &places, (plans, &works), facts.has_units, rounds_to_tf32).map_err(lost)?;
        let clock = count_times.then(|| Clock::new(&*driver, &code)).transpose().map_err(lost)?;
        let first = if is_streamed || count_times { Recorded::Never } else { Recorded::BeforeFirst };
        let recorded = code.iter().map(|entries| vec![first; entries.len()]).collect();
        let device = CudaDevice {
            driver,
            name,
            places,
            up_bytes,
            down_bytes,
            slots_first,
            host_first,
            uploaded,
            computed,
            arrived,
            code,
            recorded,
            clock,
        };
        let (signed, unsigned) = (SIGNED.lines(), UNSIGNED.lines());
        let codes = [SIGNED.values(), UNSIGNED.values(), &signed[..], &unsigned].concat();
        device.told(device.send(device.places.tables(), bytemuck::cast_slice(&codes)))?;
        Ok(device)
    }

    /// What the driver said, with the card's name.
    fn told<T>(&self, result: Result<T, String>) -> Result<T, GpuError> {
        result.map_err(|why| GpuError::Lost { device: self.name.clone(), why })
    }

    /// Sets bytes of the card's memory, and waits until they are there.
    fn send(&self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let driver = &*self.driver;
        for (i, part) in bytes.chunks(self.up_bytes as usize).enumerate() {
            driver.pinned(0, part.len() as u64, &mut |to| to.copy_from_slice(part));
            driver.up(Stream::Up, 0, address + i as u64 * self.up_bytes, part.len() as u64)?;
            driver.record(self.uploaded, Stream::Up)?;
            driver.wait(self.uploaded)?;
        }
        Ok(())
    }

    /// Brings bytes of the card's memory.
    fn bring(&self, address: u64, bytes: &mut [u8]) -> Result<(), String> {
        let driver = &*self.driver;
        for (i, part) in bytes.chunks_mut(self.down_bytes as usize).enumerate() {
            driver.down(Stream::Down, address + i as u64 * self.down_bytes, self.up_bytes, part.len() as u64)?;
            driver.record(self.arrived, Stream::Down)?;
            driver.wait(self.arrived)?;
            driver.pinned(self.up_bytes, part.len() as u64, &mut |from| part.copy_from_slice(from));
        }
        Ok(())
    }

    /// Sends an entry's inputs on their way; its steps follow them.
    fn send_inputs(&self, entry: &PlanEntry, host: &Arena) -> Result<(), String> {
        let mut at = 0;
        for input in &entry.inputs {
            let t = &input.tensor;
            self.driver.pinned(at, t.bytes(), &mut |to| to.copy_from_slice(host.tensor(t)));
            self.driver.up(Stream::Up, at, self.places.of(t.offset), t.bytes())?;
            at += staged(t);
        }
        self.driver.record(self.uploaded, Stream::Up)?;
        self.driver.follow(Stream::Compute, self.uploaded)
    }

    /// Launches steps; a whole entry at once where it is recorded.
    fn compute(&mut self, at: (usize, usize), steps: Range<usize>) -> Result<(), String> {
        if steps != (0..self.code[at.0][at.1].len()) {
            return self.launch(at, steps);
        }
        if self.recorded[at.0][at.1] == Recorded::Next {
            let (driver, code) = (&*self.driver, &self.code[at.0][at.1]);
            let give = || code.iter().flatten().try_for_each(|order| order.give(driver));
            self.recorded[at.0][at.1] = driver.capture(&give)?.map_or(Recorded::Never, Recorded::Done);
        }
        match &mut self.recorded[at.0][at.1] {
            Recorded::Done(recording) => return self.driver.replay(*recording),
            recorded if *recorded == Recorded::BeforeFirst => *recorded = Recorded::Next,
            _ => {}
        }
        self.launch(at, steps)
    }

    /// Launches steps one by one; where times are counted, between two events each.
    fn launch(&mut self, at: (usize, usize), steps: Range<usize>) -> Result<(), String> {
        let driver = &*self.driver;
        for step in steps {
            if let Some(clock) = &self.clock {
                driver.record(clock.events[step][0], Stream::Compute)?;
            }
            self.code[at.0][at.1][step].iter().try_for_each(|order| order.give(driver))?;
            if let Some(clock) = &mut self.clock {
                driver.record(clock.events[step][1], Stream::Compute)?;
                clock.launched.push(step);
            }
        }
        Ok(())
    }

    /// Waits for all kernels.
    fn finish(&self) -> Result<(), String> {
        self.driver.record(self.computed, Stream::Compute)?;
        self.driver.wait(self.computed)
    }

    /// Brings the status and results, once the steps before have ended; the status.
    fn bring_results(&self, results: &[Named], host: &mut Arena) -> Result<u32, String> {
        let driver = &*self.driver;
        driver.record(self.computed, Stream::Compute)?;
        driver.follow(Stream::Down, self.computed)?;
        driver.down(Stream::Down, self.places.status(), self.up_bytes, STATUS_BYTES)?;
        let mut at = self.up_bytes + STATUS_BYTES;
        for result in results {
            driver.down(Stream::Down, self.places.of(result.tensor.offset), at, result.tensor.bytes())?;
            at += staged(&result.tensor);
        }
        driver.record(self.arrived, Stream::Down)?;
        driver.wait(self.arrived)?;
        let mut status = [0; 4];
        driver.pinned(self.up_bytes, 4, &mut |from| status.copy_from_slice(from));
        let status = u32::from_le_bytes(status);
        at = self.up_bytes + STATUS_BYTES;
        for result in results.iter().filter(|_| status == 0) {
            let t = &result.tensor;
            driver.pinned(at, t.bytes(), &mut |from| host.tensor_mut(t).copy_from_slice(from));
            at += staged(&result.tensor);
        }
        Ok(status)
    }

    /// Launches steps; before the first, clears the status and sends the inputs.
    fn run_steps(
        &mut self,
        at: (usize, usize),
        entry: &PlanEntry,
        steps: Range<usize>,
        host: &Arena,
    ) -> Result<(), String> {
        if steps.start == 0 {
            self.clock.iter_mut().for_each(|clock| clock.launched.clear());
            self.driver.set(self.places.status(), STATUS_BYTES, 0)?;
            self.send_inputs(entry, host)?;
        }
        self.compute(at, steps)
    }

    /// Waits until nothing is under way; what fails here has failed before.
    fn rest(&self) {
        for (event, stream) in [(self.uploaded, Stream::Up), (self.computed, Stream::Compute)] {
            let _ = self.driver.record(event, stream).and_then(|()| self.driver.wait(event));
        }
        let _ = self.driver.record(self.arrived, Stream::Down).and_then(|()| self.driver.wait(self.arrived));
    }
}

impl Device for CudaDevice {
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), GpuError> {
        self.told(self.send(self.places.of(address), bytes))
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.told(self.bring(self.places.of(address), bytes))
    }

    fn fill(&mut self, first: u64, bytes: u64, byte: u8) -> Result<(), GpuError> {
        self.told(self.driver.set(self.places.of(first), bytes, byte).and_then(|()| self.finish()))
    }

    fn run(
        &mut self,
        at: (usize, usize),
        entry: &PlanEntry,
        steps: Range<usize>,
        host: &mut Arena,
        waits: bool,
    ) -> Result<(), Failure> {
        let steps = steps.start..steps.end.min(entry.steps.len());
        let results = if steps.end == entry.steps.len() { Some(&entry.results[..]) } else { None };
        let result = self.run_steps(at, entry, steps, host).and_then(|()| match results {
            None if !waits => Ok(0),
            results => {
                let status = self.bring_results(results.unwrap_or_default(), host)?;
                self.clock.iter_mut().try_for_each(|clock| clock.read(&*self.driver, at)).map(|()| status)
            }
        });
        if result.is_err() {
            self.rest();
        }
        match self.told(result)? {
            0 => Ok(()),
            status => Err(Failure::Stopped(!status as usize)),
        }
    }

    fn host_memory(&self) -> Option<Box<dyn HostMemory>> {
        Some(Box::new(Pinned { driver: Arc::clone(&self.driver), first: self.host_first }))
    }

    fn carrier(&self, files: &Arc<Files>, most: usize) -> Option<Result<Box<dyn Carrier>, RunError>> {
        let (slots_first, host_first) = (self.slots_first, self.host_first);
        let way = Way { places: self.places, slots_first, host_first, name: self.name.clone() };
        let made = CudaCarrier::new(Arc::clone(&self.driver), way, Arc::clone(files), most);
        Some(made.map(|carrier| Box::new(carrier) as Box<dyn Carrier>))
    }

    fn times(&self, at: (usize, usize)) -> Option<&[(u64, u64)]> {
        self.clock.as_ref().map(|clock| clock.times[at.0][at.1].as_slice())
    }
}

/// Pinned memory in which tensors rest, while no copy of them is under way.
struct Pinned {
    driver: Arc<dyn Driver>,
    first: u64,
}

impl HostMemory for Pinned {
    fn part(&self, at: u64, bytes: u64) -> Span {
        let mut part = Span { start: NonNull::dangling(), bytes: 0 };
        self.driver.pinned(self.first + at, bytes, &mut |there| {
            part = Span { start: NonNull::from(&mut *there).cast(), bytes: there.len() };
        });
        part
    }
}
