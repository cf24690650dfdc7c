/* Bytes of mapped files that are not there any more; and signals that are none of our business. */
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "guard.h"

enum { PAGES = 4 };

static size_t page;
static int fd;
static volatile uint8_t *mapped;

struct looking {
    size_t from;
    size_t to;
    unsigned sum;
    bool done;
};

static void look(void *argument)
{
    struct looking *looking = argument;
    for (size_t at = looking->from; at < looking->to; at++)
        looking->sum += mapped[at];
    looking->done = true;
}

static void init(void)
{
    char path[] = "/tmp/blockd-guard-XXXXXX";
    page = (size_t)sysconf(_SC_PAGESIZE);
    fd = mkstemp(path);
    CHECK(fd >= 0);
    unlink(path);
    CHECK_EQ(ftruncate(fd, (off_t)(PAGES * page)), 0);
    mapped = mmap(NULL, PAGES * page, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(mapped != MAP_FAILED);
}

static bool guarded(struct looking *looking)
{
    return bd_guarded((const void *)(mapped + looking->from), looking->to - looking->from, look,
                      looking);
}

static void what_is_gone_is_no_signal(void)
{
    CHECK_EQ(ftruncate(fd, (off_t)(PAGES * page)), 0);
    struct looking all = {page / 2, PAGES * page - 1, 0, false};
    CHECK(guarded(&all) && all.done);
    CHECK_EQ(ftruncate(fd, (off_t)(2 * page)), 0);
    for (int again = 0; again < 3; again++) { /* the signal is not left blocked */
        all.done = false;
        CHECK(!guarded(&all));
        CHECK(!all.done);
    }
    struct looking left = {0, 2 * page, 0, false};
    CHECK(guarded(&left) && left.done);
}

/* How a child ends that does this. */
static int end_of(void (*what)(void))
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        what();
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    return status;
}

static void look_without_guard(void)
{
    struct looking gone = {3 * page, 3 * page + 1, 0, false};
    look(&gone);
}

static void look_elsewhere(void *argument)
{
    (void)argument;
    look_without_guard();
}

/* Guarded are other bytes than those that are touched. */
static void look_beside_the_guard(void)
{
    bd_guarded((const void *)mapped, page, look_elsewhere, NULL);
}

static void send_it(void)
{
    raise(SIGBUS);
}

static void others_die_of_it_as_ever(void)
{
    void (*const ways[])(void) = {look_without_guard, look_beside_the_guard, send_it};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        int status = end_of(ways[i]);
        CHECK(WIFSIGNALED(status));
        CHECK_EQ(WTERMSIG(status), SIGBUS);
    }
}

int main(void)
{
    signal(SIGBUS, SIG_DFL); /* a sanitizer's would say what it thinks of it */
    init();
    what_is_gone_is_no_signal();
    others_die_of_it_as_ever();
    return 0;
}
