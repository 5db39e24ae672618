//! Taking a block's buffer from the pool and giving it back.

use criterion::{Criterion, criterion_group, criterion_main};
use escp_buf::Pool;

fn take_and_return(criterion: &mut Criterion) {
    let Ok(pool) = Pool::new(64, 1 << 20) else { return };
    let mut group = criterion.benchmark_group("pool");
    group.bench_function("take and return", |bencher| bencher.iter(|| pool.take().is_some()));
    group.bench_function("take and return 8", |bencher| {
        bencher.iter(|| {
            let held: [_; 8] = std::array::from_fn(|_| pool.take());
            held.iter().flatten().count()
        });
    });
    group.finish();
}

criterion_group!(benches, take_and_return);
criterion_main!(benches);
