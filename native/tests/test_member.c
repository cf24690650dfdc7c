/* What a member does with records that are well formed and yet not to be appended now. */
#include <errno.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crc32c.h"
#include "locks.h"
#include "member.h"
#include "record.h"
#include "rig.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 24, EPOCH = 1, NOTE_BYTES = 128 };

/* Record `seq` of EPOCH: a NOTE that takes a volume of VOLUME bytes back to a version of `size`. */
static void make_restore(uint8_t bytes[NOTE_BYTES], uint64_t seq, uint64_t size)
{
    memset(bytes, 0, NOTE_BYTES);
    uint8_t *payload = bytes + BD_RECORD_HEADER;
    payload[0] = BD_NOTE_VERSION;
    payload[1] = BD_NOTE_RESTORE;
    bd_put64(payload + 8, VOLUME);
    bd_put64(payload + 16, size);
    struct bd_record record = {.op = BD_RECORD_NOTE,
                               .volume_epoch = EPOCH,
                               .seq = seq,
                               .length = BD_NOTE_HEADER,
                               .payload_crc = bd_crc32c(0, payload, BD_NOTE_HEADER)};
    bd_record_encode(&record, bytes);
    CHECK_EQ(bd_record_footprint(&record), NOTE_BYTES);
}

static int append(struct rig *rig, uint32_t epoch, const uint8_t *bytes, bool notes,
                  struct bd_member_note *note)
{
    uint64_t seq = 0;
    *note = (struct bd_member_note){0};
    int error = bd_member_append(rig->volume, epoch, bytes, NOTE_BYTES, 1, notes, &seq, note);
    CHECK_EQ(seq, rig->volume->seq);
    return error;
}

static void a_restore_waits_for_the_round_that_has_what_is_hot(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 4, VOLUME);
    rig_holes(&rig, VOLUME / RIG_CHUNK);
    rig_write(&rig, 0, 4096, 'a');
    bd_lock(&rig.journal->lock);
    CHECK_EQ(bd_volume_freeze(rig.volume), 0);
    pthread_mutex_unlock(&rig.journal->lock);

    uint8_t restore[NOTE_BYTES];
    make_restore(restore, 2, VOLUME / 2);
    struct bd_member_note note;
    CHECK_EQ(append(&rig, EPOCH, restore, true, &note), -EBUSY);
    CHECK_EQ(note.lsn, 0);
    CHECK_EQ(rig.volume->seq, 1);
    CHECK_EQ(rig.volume->size, VOLUME);
    rig_expect(&rig, 0, 4096, 'a');

    bd_volume_commit(rig.volume, 1);
    rig_holes(&rig, VOLUME / RIG_CHUNK);
    CHECK_EQ(append(&rig, EPOCH, restore, true, &note), 0);
    CHECK(note.found && note.lsn != 0);
    CHECK_EQ(rig.volume->seq, 2);
    CHECK_EQ(rig.volume->size, VOLUME / 2);
    rig_expect(&rig, 0, 4096, 0);
    rig_destroy(&rig);
}

static void a_frozen_map_is_in_the_way_of_no_other_record(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 4, VOLUME);
    bd_lock(&rig.journal->lock);
    CHECK_EQ(bd_volume_freeze(rig.volume), 0);
    pthread_mutex_unlock(&rig.journal->lock);
    uint8_t note_bytes[NOTE_BYTES];
    make_restore(note_bytes, 1, VOLUME);
    note_bytes[BD_RECORD_HEADER + 1] = BD_NOTE_RESTORE + 1; /* a kind of no concern here */
    struct bd_record record;
    CHECK_EQ(bd_record_decode(note_bytes, &record), 0);
    record.payload_crc = bd_crc32c(0, note_bytes + BD_RECORD_HEADER, BD_NOTE_HEADER);
    bd_record_encode(&record, note_bytes);
    struct bd_member_note note;
    CHECK_EQ(append(&rig, EPOCH, note_bytes, true, &note), 0);
    CHECK_EQ(rig.volume->seq, 1);
    rig_destroy(&rig);
}

/* Who was superseded sends what nobody has to look through. */
static void records_of_another_epoch_are_not_looked_at(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 4, VOLUME);
    uint8_t bytes[NOTE_BYTES];
    make_restore(bytes, 1, VOLUME);
    bytes[BD_RECORD_HEADER] ^= 1;
    struct bd_member_note note;
    CHECK_EQ(append(&rig, EPOCH, bytes, true, &note), -EBADMSG);
    CHECK_EQ(append(&rig, EPOCH + 1, bytes, true, &note), -ESTALE);
    bd_member_begin(rig.volume, EPOCH + 1);
    CHECK_EQ(append(&rig, EPOCH, bytes, true, &note), -ESTALE);
    CHECK_EQ(append(&rig, EPOCH + 1, bytes, true, &note), -EBADMSG);
    rig_destroy(&rig);
}

int main(void)
{
    a_restore_waits_for_the_round_that_has_what_is_hot();
    a_frozen_map_is_in_the_way_of_no_other_record();
    records_of_another_epoch_are_not_looked_at();
    return 0;
}
