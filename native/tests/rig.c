#include "rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

static const uint8_t uuid[16] = "0123456789abcdef";

static void open_parts(struct rig *rig, uint64_t volume_bytes)
{
    rig->journal = bd_journal_new(uuid, rig->segment_bytes, 1);
    rig->table = bd_table_new(1 << 20);
    CHECK(rig->journal != NULL && rig->table != NULL);
    rig->volume = bd_volume_new(rig->journal, rig->table, 1, 1, RIG_CHUNK, volume_bytes, 0, 0);
    CHECK(rig->volume != NULL);
}

static void close_parts(struct rig *rig)
{
    bd_volume_free(rig->volume);
    bd_table_free(rig->table);
    bd_journal_free(rig->journal);
}

void rig_init(struct rig *rig, uint64_t segment_bytes, uint32_t ready, uint64_t volume_bytes)
{
    memset(rig, 0, sizeof *rig);
    rig->segment_bytes = segment_bytes;
    rig->now_ns = 1000 * 1000 * 1000;
    open_parts(rig, volume_bytes);
    for (uint32_t slot = 0; slot < RIG_SEGMENTS; slot++) {
        memory_file_init(&rig->files[slot], segment_bytes, 0);
        if (slot < ready)
            CHECK_EQ(bd_journal_add_ready(rig->journal, slot, memory_file_open(&rig->files[slot])),
                     0);
    }
}

void rig_destroy(struct rig *rig)
{
    close_parts(rig);
    for (uint32_t slot = 0; slot < RIG_SEGMENTS; slot++)
        memory_file_destroy(&rig->files[slot]);
}

/* The slot whose header goes on from the replay's position in the log, or -1. */
static int next_segment(struct rig *rig, const struct bd_replay *replay, uint64_t *sequence)
{
    int found = -1;
    uint64_t best = UINT64_MAX;
    for (int slot = 0; slot < RIG_SEGMENTS; slot++) {
        struct bd_segment_header header;
        if (bd_segment_header_decode(rig->files[slot].bytes, &header) == 0 &&
            header.sequence > *sequence && header.sequence < best &&
            header.first_lsn == replay->next_lsn && header.chain == replay->chain) {
            best = header.sequence;
            found = slot;
        }
    }
    *sequence = best;
    return found;
}

uint64_t rig_restart(struct rig *rig)
{
    uint64_t volume_bytes = rig->volume->size;
    uint32_t node_epoch = rig->journal->node_epoch;
    close_parts(rig);
    open_parts(rig, volume_bytes);
    rig->journal->node_epoch = node_epoch + 1;
    struct bd_volume *volumes[2] = {NULL, rig->volume};
    struct bd_replay replay = {
        .journal = rig->journal, .volumes = volumes, .volume_count = 2, .next_lsn = 1};
    uint64_t sequence = 0;
    bool used[RIG_SEGMENTS] = {false};
    int last = -1;
    for (;;) {
        int slot = next_segment(rig, &replay, &sequence);
        if (slot < 0)
            break;
        used[slot] = true;
        last = slot;
        CHECK_EQ(bd_journal_adopt(rig->journal, (uint32_t)slot, memory_file_open(&rig->files[slot]),
                                  sequence),
                 0);
        replay.position = BD_SEGMENT_HEADER;
        CHECK_EQ(bd_replay_segment(&replay, (uint32_t)slot), 0);
    }
    for (uint32_t slot = 0; slot < RIG_SEGMENTS; slot++)
        if (!used[slot])
            CHECK_EQ(bd_journal_add_ready(rig->journal, slot, memory_file_open(&rig->files[slot])),
                     0);
    if (last >= 0)
        CHECK_EQ(bd_journal_resume(rig->journal, (uint32_t)last, replay.position, replay.next_lsn,
                                   replay.chain),
                 0);
    rig->last_ns = replay.last_ns;
    return replay.records;
}

int rig_do(struct rig *rig, enum bd_action_kind kind, uint64_t offset, uint64_t length,
           uint8_t *data, int *status)
{
    struct bd_action action = {
        .kind = (uint8_t)kind, .offset = offset, .length = length, .data = data};
    bd_batch_execute(rig->volume, &action, 1, rig->now_ns);
    if (status != NULL)
        *status = action.status;
    return action.state;
}

void rig_write(struct rig *rig, uint64_t offset, uint64_t length, uint8_t byte)
{
    uint8_t *data = malloc(length);
    CHECK(data != NULL);
    memset(data, byte, length);
    int status;
    CHECK_EQ(rig_do(rig, BD_ACTION_WRITE, offset, length, data, &status), BD_ACTION_DONE);
    CHECK_EQ(status, 0);
    free(data);
}

void rig_expect(struct rig *rig, uint64_t offset, uint64_t length, uint8_t byte)
{
    uint8_t *data = malloc(length);
    CHECK(data != NULL);
    memset(data, ~byte, length);
    struct bd_read_fault fault;
    CHECK_EQ(bd_volume_read(rig->volume, offset, length, data, false, &fault), 0);
    for (uint64_t i = 0; i < length; i++)
        CHECK_EQ(data[i], byte);
    free(data);
}

void rig_holes(struct rig *rig, uint64_t count)
{
    for (uint64_t index = 0; index < count; index++)
        CHECK_EQ(bd_table_put(rig->table, 1, index, BD_CHUNK_HOLE, NULL, 0, RIG_CHUNK, NULL, 0), 0);
}

void rig_round(struct rig *rig)
{
    pthread_mutex_lock(&rig->journal->lock);
    struct bd_cut cut = bd_journal_cut(rig->journal);
    pthread_mutex_lock(&rig->volume->lock);
    CHECK_EQ(bd_volume_freeze(rig->volume), 0);
    pthread_mutex_unlock(&rig->volume->lock);
    pthread_mutex_unlock(&rig->journal->lock);
    bd_volume_commit(rig->volume, rig->volume->generation + 1);
    uint32_t slots[RIG_SEGMENTS];
    uint32_t count = bd_journal_release(rig->journal, cut.lsn, slots, RIG_SEGMENTS);
    for (uint32_t i = 0; i < count; i++)
        CHECK_EQ(bd_journal_recycle(rig->journal, slots[i]), 0);
}
