/* Writers and readers, a syncer and a destager at work on the same volumes.
 *
 * Each writer owns a stripe of its volume and knows what it wrote there last; a read in between
 * must return exactly that, whether it comes from the active map, the frozen one or a chunk. The
 * destager freezes, copies the frozen bytes into chunks, commits, releases and recycles, without
 * end; slots are few, so that segments are used again all the time. */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "check.h"
#include "rig.h"

enum { SEGMENT = 256 << 10, WRITERS = 2, CHUNKS = 4, STRIPE = CHUNKS * RIG_CHUNK, STEPS = 3000 };

struct shared {
    struct rig rig;
    uint8_t chunks[WRITERS * CHUNKS][RIG_CHUNK]; /* what is destaged; the destager's alone */
    atomic_int running;
    unsigned rounds;
};

struct writer {
    struct shared *shared;
    uint64_t base;
    uint64_t random;
};

static void read_until_done(struct shared *shared, uint64_t offset, uint64_t length, uint8_t *data)
{
    struct bd_read_fault fault;
    int error;
    while ((error = bd_volume_read(shared->rig.volume, offset, length, data, false, &fault)) ==
           -EAGAIN)
        sched_yield(); /* the destager is about to put the chunk's place */
    CHECK_EQ(error, 0);
}

static void step(struct writer *writer, uint8_t *model, uint8_t *data)
{
    struct shared *shared = writer->shared;
    uint64_t at = 512 * random_below(&writer->random, STRIPE / 512);
    uint64_t length = 512 * (1 + random_below(&writer->random, 24));
    if (length > STRIPE - at)
        length = STRIPE - at;
    struct bd_action action = {.offset = writer->base + at, .length = length, .data = data};
    switch (random_below(&writer->random, 8)) {
    case 0:
        action.kind = BD_ACTION_UNMAP;
        memset(data, 0, length);
        break;
    case 1:
    case 2:
    case 3:
        action.kind = BD_ACTION_WRITE;
        random_bytes(&writer->random, data, length);
        break;
    default:
        read_until_done(shared, writer->base + at, length, data);
        CHECK(memcmp(data, model + at, length) == 0);
        return;
    }
    do
        bd_batch_execute(shared->rig.volume, &action, 1, next_random(&writer->random));
    while (action.state == BD_ACTION_WAIT_SPACE && sched_yield() == 0);
    CHECK_EQ(action.status, 0);
    memcpy(model + at, data, length);
}

static void *write_and_read(void *with)
{
    struct writer *writer = with;
    uint8_t *model = calloc(1, STRIPE);
    uint8_t *data = malloc(STRIPE);
    for (int i = 0; i < STEPS; i++)
        step(writer, model, data);
    read_until_done(writer->shared, writer->base, STRIPE, data);
    CHECK(memcmp(data, model, STRIPE) == 0);
    free(model);
    free(data);
    atomic_fetch_sub(&writer->shared->running, 1);
    return NULL;
}

static void *sync_on(void *with)
{
    struct shared *shared = with;
    uint64_t before = 0;
    while (atomic_load(&shared->running) > 0) {
        uint64_t synced;
        CHECK_EQ(bd_journal_sync(shared->rig.journal, &synced), 0);
        CHECK(synced >= before);
        before = synced;
        sched_yield();
    }
    return NULL;
}

static void put_chunks(struct shared *shared)
{
    for (uint64_t i = 0; i < WRITERS * CHUNKS; i++)
        CHECK_EQ(bd_table_put(shared->rig.table, 1, i, BD_CHUNK_DECODED, NULL, 0, RIG_CHUNK,
                              shared->chunks[i], RIG_CHUNK),
                 0);
}

static void *destage(void *with)
{
    struct shared *shared = with;
    struct rig *rig = &shared->rig;
    while (atomic_load(&shared->running) > 0) {
        pthread_mutex_lock(&rig->journal->lock);
        struct bd_cut cut = bd_journal_cut(rig->journal);
        pthread_mutex_lock(&rig->volume->lock);
        CHECK_EQ(bd_volume_freeze(rig->volume), 0);
        pthread_mutex_unlock(&rig->volume->lock);
        pthread_mutex_unlock(&rig->journal->lock);
        for (uint64_t i = 0; i < WRITERS * CHUNKS; i++) {
            struct bd_read_fault fault;
            CHECK_EQ(bd_volume_read_frozen(rig->volume, i * RIG_CHUNK, RIG_CHUNK, shared->chunks[i],
                                           &fault),
                     0);
        }
        bd_volume_commit(rig->volume, rig->volume->generation + 1);
        put_chunks(shared);
        uint32_t slots[RIG_SEGMENTS];
        uint32_t count = bd_journal_release(rig->journal, cut.lsn, slots, RIG_SEGMENTS);
        for (uint32_t i = 0; i < count; i++)
            CHECK_EQ(bd_journal_recycle(rig->journal, slots[i]), 0);
        shared->rounds++;
        sched_yield();
    }
    return NULL;
}

int main(void)
{
    static struct shared shared;
    rig_init(&shared.rig, SEGMENT, 4, WRITERS * STRIPE);
    put_chunks(&shared);
    shared.running = WRITERS;
    struct writer writers[WRITERS];
    pthread_t threads[WRITERS + 3];
    for (int i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){&shared, (uint64_t)i * STRIPE, (uint64_t)i + 1};
        CHECK_EQ(pthread_create(&threads[i], NULL, write_and_read, &writers[i]), 0);
    }
    CHECK_EQ(pthread_create(&threads[WRITERS], NULL, sync_on, &shared), 0);
    CHECK_EQ(pthread_create(&threads[WRITERS + 1], NULL, sync_on, &shared), 0);
    CHECK_EQ(pthread_create(&threads[WRITERS + 2], NULL, destage, &shared), 0);
    for (int i = 0; i < WRITERS + 3; i++)
        pthread_join(threads[i], NULL);
    CHECK(shared.rounds > 10);
    CHECK(shared.rig.journal->next_sequence > 5);
    for (uint32_t slot = 0; slot < 4; slot++)
        CHECK_EQ(shared.rig.journal->segments[slot]->pins, 0);
    rig_destroy(&shared.rig);
    return 0;
}
