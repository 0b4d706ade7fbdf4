//! A future that is looked at only when it has been woken itself: for what happens once in the life of a task whose
//! turns are many.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

pub struct Seldom<F> {
    future: Pin<Box<F>>,
    call: Arc<Call>,
    /// Of the call.
    waker: Waker,
}

struct Call {
    has_come: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_come.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F: Future> Seldom<F> {
    pub fn new(future: F) -> Self {
        // The first look is what makes the future wake anyone.
        let call = Arc::new(Call { has_come: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: call.clone().into(), call }
    }
}

impl<F: Future> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.call.task.register(context.waker());
        if !self.call.has_come.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let Self { future, waker, .. } = &mut *self;
        future.as_mut().poll(&mut Context::from_waker(waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn};

    use super::*;

    #[tokio::test]
    async fn it_is_looked_at_once_and_then_when_it_is_woken() {
        let (end, ended) = tokio::sync::oneshot::channel::<u32>();
        let looks = Cell::new(0);
        let mut ended = Box::pin(ended);
        let seldom = Seldom::new(poll_fn(|context| {
            looks.set(looks.get() + 1);
            ended.as_mut().poll(context)
        }));
        tokio::pin!(seldom);
        for _ in 0..5 {
            let looked = poll_fn(|context| Poll::Ready(seldom.as_mut().poll(context)));
            assert!(looked.await.is_pending());
        }
        assert_eq!(looks.get(), 1);
        let sending = tokio::spawn(async move { end.send(7) });
        assert_eq!(seldom.await, Ok(7));
        assert_eq!((looks.get(), sending.await.expect("it runs")), (2, Ok(())));
    }
}
