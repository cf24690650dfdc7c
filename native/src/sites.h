/* Sites: places in the core where a test rig may step in. Three kinds:
 *
 *   point   the process kills itself there (SIGKILL), at the n-th time that it comes by
 *   rare    what hardly ever happens, happens: a legal event that callers must be ready for
 *   rule    a safety rule is broken on purpose, to show that the tests would notice
 *
 * In production nothing is armed: a site is one test of a flag that is never set. Only
 * `volume.sites`, by environment variables of the test rig, and tests themselves arm any. */
#ifndef BLOCKD_SITES_H
#define BLOCKD_SITES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Enumerator, kind, name. Names are listed with their meanings in volume/sites.py. */
#define BD_SITES(SITE)                                                                             \
    SITE(JOURNAL_APPEND_BEFORE, POINT, "journal.append.before")                                    \
    SITE(JOURNAL_APPEND_AFTER, POINT, "journal.append.after")                                      \
    SITE(JOURNAL_SYNC_BEFORE, POINT, "journal.sync.before")                                        \
    SITE(JOURNAL_SYNC_AFTER, POINT, "journal.sync.after")                                          \
    SITE(JOURNAL_ROTATE_BEFORE, POINT, "journal.rotate.before")                                    \
    SITE(JOURNAL_ROTATE_AFTER, POINT, "journal.rotate.after")                                      \
    SITE(JOURNAL_RELEASE_AFTER, POINT, "journal.release.after")                                    \
    SITE(JOURNAL_RECYCLE_AFTER, POINT, "journal.recycle.after")                                    \
    SITE(ROTATE_EARLY, RARE, "journal.rotate-early")                                               \
    SITE(NO_SEGMENT, RARE, "journal.no-segment")                                                   \
    SITE(SHORT_READ, RARE, "file.short-read")                                                      \
    SITE(SHORT_WRITE, RARE, "file.short-write")                                                    \
    SITE(WOULD_WAIT, RARE, "file.would-wait")                                                      \
    SITE(ACK_DELAYED, RARE, "ack.delayed")                                                         \
    SITE(CONFLICT, RARE, "batch.conflict")                                                         \
    SITE(TABLE_FORGETS, RARE, "table.forget")                                                      \
    SITE(NOT_WRITTEN, RULE, "journal.ack-unwritten")                                               \
    SITE(NOT_SYNCED, RULE, "journal.sync-nothing")                                                 \
    SITE(SHARED_SECTOR, RULE, "journal.share-flushed-sector")                                      \
    SITE(RELEASE_EARLY, RULE, "journal.release-unchecked")                                         \
    SITE(ANY_EPOCH, RULE, "replay.any-epoch")                                                      \
    SITE(ANY_CHAIN, RULE, "replay.any-chain")                                                      \
    SITE(ANY_PAYLOAD, RULE, "replay.any-payload")                                                  \
    SITE(ACK_EARLY, RULE, "sender.ack-early")                                                      \
    SITE(UNCHECKED_READ, RULE, "read.unchecked")                                                   \
    SITE(ZEROS_FOR_DAMAGE, RULE, "read.zeros-for-damage")

enum bd_site {
#define BD_SITE_ENUM(site, kind, name) BD_SITE_##site,
    BD_SITES(BD_SITE_ENUM)
#undef BD_SITE_ENUM
        BD_SITE_COUNT
};

enum bd_site_kind { BD_SITE_POINT, BD_SITE_RARE, BD_SITE_RULE };

struct bd_site_facts {
    const char *name;
    enum bd_site_kind kind;
    uint64_t reached; /* since it was armed */
    uint64_t fired;
};

extern atomic_bool bd_sites_armed;

/* Of an armed site: count, and decide. A point that fires does not return. */
bool bd_site_decide(enum bd_site site);

/* Whether the site's event happens now. Any thread, with any locks held. */
static inline bool bd_site_fires(enum bd_site site)
{
    return __builtin_expect(atomic_load_explicit(&bd_sites_armed, memory_order_relaxed), 0) &&
           bd_site_decide(site);
}

static inline void bd_fail_point(enum bd_site site)
{
    (void)bd_site_fires(site);
}

/* Arm one site: it fires at the `nth` time that it is reached, or, for nth 0, each time with a
 * chance of `chance` in 2^32, drawn from `seed` and the count of times. While no other thread is
 * in the core. -ENOENT: no such name. */
int bd_site_arm(const char *name, uint64_t nth, uint64_t chance, uint64_t seed);

/* Nothing fires any more; counts are gone. */
void bd_sites_disarm(void);

/* File descriptor for lines "reached NAME" and "fired NAME", one of each for an armed site; -1: no
 * such file. Not closed. They are written before the process dies of it. */
void bd_sites_report(int fd);

struct bd_site_facts bd_site_facts(enum bd_site site);

#endif
