#include "guard.h"

#include <assert.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

struct guard {
    sigjmp_buf back;
    uintptr_t start; /* whole pages */
    uintptr_t end;
};

static _Thread_local struct guard *volatile current;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct sigaction before;
static uintptr_t page_mask;

/* What would have happened without us. */
static void pass_on(int number, siginfo_t *facts, void *context)
{
    if ((before.sa_flags & SA_SIGINFO) != 0) {
        before.sa_sigaction(number, facts, context);
    } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
        signal(number, SIG_DFL);
        if (facts->si_code <= 0)
            raise(number); /* somebody sent it; else the same access does it again */
    } else {
        before.sa_handler(number);
    }
}

static void on_bus_error(int number, siginfo_t *facts, void *context)
{
    struct guard *guard = current;
    uintptr_t at = (uintptr_t)facts->si_addr;
    if (guard != NULL && facts->si_code > 0 && at >= guard->start && at < guard->end)
        siglongjmp(guard->back, 1);
    pass_on(number, facts, context);
}

/* SA_NODEFER: who jumps out of the handler leaves the signal's mask as it was. */
static void install(void)
{
    struct sigaction ours = {.sa_sigaction = on_bus_error,
                             .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&ours.sa_mask);
    page_mask = ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
    int error = sigaction(SIGBUS, &ours, &before);
    assert(error == 0);
    (void)error;
}

bool bd_guarded(const void *start, size_t length, void (*look)(void *argument), void *argument)
{
    struct guard guard;
    pthread_once(&once, install);
    assert(current == NULL);
    guard.start = (uintptr_t)start & page_mask;
    guard.end = ((uintptr_t)start + length + ~page_mask) & page_mask;
    if (sigsetjmp(guard.back, 0) != 0) {
        current = NULL;
        return false;
    }
    current = &guard;
    atomic_signal_fence(memory_order_seq_cst);
    look(argument);
    atomic_signal_fence(memory_order_seq_cst);
    current = NULL;
    return true;
}
