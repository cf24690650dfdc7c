/* Batches: order, states, groups. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "rig.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 24 };

static uint8_t payloads[16][8192];

static struct bd_action write_of(int which, uint64_t offset, uint64_t length)
{
    memset(payloads[which], which + 1, sizeof payloads[which]);
    return (struct bd_action){
        .kind = BD_ACTION_WRITE, .offset = offset, .length = length, .data = payloads[which]};
}

static struct bd_action read_of(uint8_t *data, uint64_t offset, uint64_t length)
{
    return (struct bd_action){
        .kind = BD_ACTION_READ, .offset = offset, .length = length, .data = data};
}

static void test_a_read_sees_the_writes_before_it_only(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_holes(&rig, 1);
    uint8_t got[4][4096];
    struct bd_action actions[] = {
        read_of(got[0], 0, 4096),
        write_of(0, 0, 4096),
        read_of(got[1], 0, 4096),
        write_of(1, 512, 512),
        write_of(2, 1024, 512),
        read_of(got[2], 0, 4096),
        {.kind = BD_ACTION_UNMAP, .offset = 0, .length = 512},
        read_of(got[3], 0, 4096),
    };
    bd_batch_execute(rig.volume, actions, 8, 1);
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(actions[i].state, BD_ACTION_DONE);
        CHECK_EQ(actions[i].status, 0);
    }
    for (int at = 0; at < 4096; at++) {
        int second = at >= 512 && at < 1024 ? 2 : at >= 1024 && at < 1536 ? 3 : 1;
        CHECK_EQ(got[0][at], 0);
        CHECK_EQ(got[1][at], 1);
        CHECK_EQ(got[2][at], second);
        CHECK_EQ(got[3][at], at < 512 ? 0 : second);
    }
    rig_destroy(&rig);
}

static void test_writes_of_a_batch_are_one_pwritev(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 512, 1);
    rig_holes(&rig, 2);
    unsigned before = rig.files[0].writes;
    uint8_t got[512];
    struct bd_action actions[] = {
        write_of(0, 0, 4096),         write_of(1, 4096, 4096),
        read_of(got, RIG_CHUNK, 512), /* elsewhere: no reason to write first */
        write_of(2, 0, 4096),         {.kind = BD_ACTION_ZERO, .offset = 8192, .length = 512},
    };
    bd_batch_execute(rig.volume, actions, 5, rig.now_ns);
    CHECK_EQ(rig.files[0].writes, before + 1);
    rig_expect(&rig, 0, 4096, 3); /* the later one of the same batch */
    rig_expect(&rig, 4096, 4096, 2);
    rig_destroy(&rig);
}

static void test_a_condition_holds_until_something_is_written(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    struct bd_action actions[5];
    for (int i = 0; i < 5; i++) {
        actions[i] = write_of(i, 0, 512);
        actions[i].if_seq = true;
    }
    actions[0].seq = 1; /* nothing was written yet */
    actions[1].seq = 0;
    actions[2].seq = 0; /* the one before it is in the same batch */
    actions[3].seq = 1;
    actions[3].kind = BD_ACTION_UNMAP;
    actions[4].seq = 2;
    actions[4].length = SEGMENT; /* would be several records */
    bd_batch_execute(rig.volume, actions, 5, 1);
    const int expected[] = {-ECANCELED, 0, -ECANCELED, 0, -EINVAL};
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(actions[i].state, BD_ACTION_DONE);
        CHECK_EQ(actions[i].status, expected[i]);
    }
    CHECK_EQ(rig.volume->seq, 2);
    actions[2].seq = 2;
    bd_batch_execute(rig.volume, &actions[2], 1, 1);
    CHECK_EQ(actions[2].status, 0);
    rig_expect(&rig, 0, 512, 3);
    rig_destroy(&rig);
}

static void test_more_writes_than_a_group_holds(void)
{
    struct rig rig;
    rig_init(&rig, 4 << 20, 2, VOLUME);
    static struct bd_action actions[1000];
    for (int i = 0; i < 1000; i++)
        actions[i] = write_of(i % 16, (uint64_t)i * 512, 512);
    bd_batch_execute(rig.volume, actions, 1000, 1);
    for (int i = 0; i < 1000; i++) {
        CHECK_EQ(actions[i].state, BD_ACTION_DONE);
        CHECK_EQ(actions[i].status, 0);
        rig_expect(&rig, (uint64_t)i * 512, 512, (uint8_t)(i % 16 + 1));
    }
    CHECK_EQ(rig.volume->seq, 1000);
    CHECK(rig.files[0].writes < 10);
    rig_restart(&rig);
    CHECK_EQ(rig.volume->seq, 1000);
    rig_destroy(&rig);
}

static void test_states(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    uint8_t got[512];
    struct bd_action flush = {.kind = BD_ACTION_FLUSH};
    bd_batch_execute(rig.volume, &flush, 1, 1);
    CHECK_EQ(flush.state, BD_ACTION_DONE); /* nothing was ever written */
    struct bd_action actions[] = {
        write_of(0, 0, 512),
        write_of(1, 512, 512),
        {.kind = BD_ACTION_FLUSH},
        read_of(got, 1 << 20, 512),
        {.kind = BD_ACTION_NONE, .status = 77},
        {.kind = BD_ACTION_UNMAP, .offset = 0, .length = 512, .sync = true},
    };
    actions[1].sync = true;
    bd_batch_execute(rig.volume, actions, 6, 1);
    CHECK_EQ(actions[0].state, BD_ACTION_DONE);
    CHECK_EQ(actions[1].state, BD_ACTION_WAIT_SYNC);
    CHECK_EQ(actions[2].state, BD_ACTION_WAIT_SYNC);
    CHECK_EQ(actions[3].state, BD_ACTION_WAIT_READ); /* no place for that chunk */
    CHECK_EQ(actions[4].state, BD_ACTION_DONE);
    CHECK_EQ(actions[4].status, 0);
    CHECK_EQ(actions[5].state, BD_ACTION_WAIT_SYNC);
    CHECK_EQ(bd_journal_sync(rig.journal, NULL), 0);
    bd_batch_execute(rig.volume, &flush, 1, 1);
    CHECK_EQ(flush.state, BD_ACTION_DONE);
    rig.files[0].would_wait = true;
    CHECK_EQ(rig_do(&rig, BD_ACTION_READ, 512, 512, got, NULL), BD_ACTION_WAIT_READ);
    rig_destroy(&rig);
}

static void test_a_failed_group_fails_all_its_requests(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 8192, 9);
    struct bd_action actions[] = {
        write_of(0, 0, 512),
        write_of(1, 512, 512),
        {.kind = BD_ACTION_FLUSH},
        {.kind = BD_ACTION_UNMAP, .offset = 1024, .length = 512},
    };
    actions[1].sync = true;
    rig.files[0].fail_pwritev = -ENOSPC;
    rig.files[0].fail_written = 700;
    bd_batch_execute(rig.volume, actions, 4, 1);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(actions[i].status, i == 2 ? 0 : -ENOSPC);
        CHECK_EQ(actions[i].state, i == 2 ? BD_ACTION_WAIT_SYNC : BD_ACTION_DONE);
    }
    rig_expect(&rig, 0, 8192, 9);
    bd_batch_execute(rig.volume, actions, 4, 1);
    CHECK_EQ(actions[0].status, 0);
    rig_expect(&rig, 0, 512, 1);
    rig_destroy(&rig);
}

/* The group that a read forces out fails: the read still gets what was there before. */
static void test_a_read_behind_a_failed_write(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 512, 9);
    uint8_t got[512];
    struct bd_action actions[] = {write_of(0, 0, 512), read_of(got, 0, 512), write_of(1, 512, 512)};
    rig.files[0].fail_pwritev = -ENOSPC;
    bd_batch_execute(rig.volume, actions, 3, 1);
    CHECK_EQ(actions[0].status, -ENOSPC);
    CHECK_EQ(actions[1].status, 0);
    CHECK_EQ(got[0], 9);
    CHECK_EQ(actions[2].status, 0);
    rig_expect(&rig, 512, 512, 2);
    rig_destroy(&rig);
}

static void test_a_long_write_that_finds_no_segment(void)
{
    struct rig rig;
    rig_init(&rig, 64 << 10, 2, VOLUME);
    static uint8_t data[200 << 10];
    memset(data, 7, sizeof data);
    int status;
    CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, 0, sizeof data, data, &status), BD_ACTION_WAIT_SPACE);
    CHECK_EQ(status, 0);
    for (uint32_t slot = 2; slot < 12; slot++)
        CHECK_EQ(bd_journal_add_ready(rig.journal, slot, memory_file_open(&rig.files[slot])), 0);
    CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, 0, sizeof data, data, &status), BD_ACTION_DONE);
    CHECK_EQ(status, 0);
    rig_expect(&rig, 0, sizeof data, 7);
    rig_restart(&rig);
    rig_expect(&rig, 0, sizeof data, 7);
    rig_destroy(&rig);
}

static void test_a_write_of_several_records_waits_for_room_for_all_of_them(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 1, VOLUME);
    rig_write(&rig, 0, 4096, 7);
    uint64_t seq = rig.volume->seq;
    static uint8_t data[SEGMENT - 8192]; /* more than one record */
    memset(data, 8, sizeof data);
    int status;
    CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, 0, sizeof data, data, &status), BD_ACTION_WAIT_SPACE);
    CHECK_EQ(rig.volume->seq, seq); /* though the first record would have fitted in */
    rig_write(&rig, 0, 512, 9);     /* as another client may, and that is there to stay */
    rig_expect(&rig, 512, 4096 - 512, 7);
    CHECK_EQ(bd_journal_add_ready(rig.journal, 1, memory_file_open(&rig.files[1])), 0);
    CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, 0, sizeof data, data, &status), BD_ACTION_DONE);
    CHECK(rig.volume->seq > seq + 2); /* the other client's, and more than one */
    rig_expect(&rig, 0, sizeof data, 8);
    rig_destroy(&rig);
}

static void test_two_volumes_share_a_journal(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    struct bd_volume *other =
        bd_volume_new(rig.journal, rig.table, 2, 1, RIG_CHUNK, VOLUME, 100, 0);
    struct bd_action mine = write_of(0, 0, 512);
    struct bd_action theirs = write_of(1, 0, 512);
    for (int i = 0; i < 3; i++) {
        bd_batch_execute(rig.volume, &mine, 1, 1);
        bd_batch_execute(other, &theirs, 1, 1);
    }
    CHECK_EQ(rig.volume->seq, 3);
    CHECK_EQ(other->seq, 103);
    rig_expect(&rig, 0, 512, 1);
    uint8_t got[512];
    struct bd_read_fault fault;
    CHECK_EQ(bd_volume_read(other, 0, 512, got, false, &fault), 0);
    CHECK_EQ(got[0], 2);
    /* Both in one group, as only a caller who holds the lock throughout can do. */
    pthread_mutex_lock(&rig.journal->lock);
    struct bd_record record = {.op = BD_RECORD_WRITE, .offset = 512, .length = 512};
    struct bd_record head = {.op = BD_RECORD_HEAD, .volume = 1, .length = 512};
    CHECK_EQ(bd_journal_add(rig.journal, rig.volume, record, payloads[0], 1, NULL), 0);
    CHECK_EQ(bd_journal_add(rig.journal, NULL, head, payloads[2], 1, NULL), 0);
    CHECK_EQ(bd_journal_add(rig.journal, other, record, payloads[1], 1, NULL), 0);
    CHECK_EQ(bd_journal_commit(rig.journal), 0);
    CHECK_EQ(bd_journal_commit(rig.journal), 0);
    pthread_mutex_unlock(&rig.journal->lock);
    rig_expect(&rig, 0, 1024, 1); /* the head record is no write of the volume */
    CHECK_EQ(bd_volume_read(other, 512, 512, got, false, &fault), 0);
    CHECK_EQ(got[0], 2);
    CHECK_EQ(rig.volume->seq, 4);
    bd_volume_free(other);
    rig_destroy(&rig);
}

static void test_nothing_is_done_beyond_the_end_of_a_volume_that_shrank(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, VOLUME - 4096, 4096, 7);
    rig.volume->size = VOLUME - 2048;
    uint64_t lsn = rig.journal->next_lsn;
    uint8_t got[4096];
    static const uint64_t offsets[] = {VOLUME - 4096, VOLUME - 2048, VOLUME, UINT64_MAX - 4095};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        int status;
        CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, offsets[i], 4096, payloads[0], &status),
                 BD_ACTION_DONE);
        CHECK_EQ(status, -EINVAL);
        CHECK_EQ(rig_do(&rig, BD_ACTION_READ, offsets[i], 4096, got, &status), BD_ACTION_DONE);
        CHECK_EQ(status, -EINVAL);
        CHECK_EQ(rig_do(&rig, BD_ACTION_ZERO, offsets[i], 4096, NULL, &status), BD_ACTION_DONE);
        CHECK_EQ(status, -EINVAL);
    }
    CHECK_EQ(rig.journal->next_lsn, lsn);
    rig_expect(&rig, VOLUME - 4096, 2048, 7);
    rig_destroy(&rig);
}

int main(void)
{
    test_a_read_sees_the_writes_before_it_only();
    test_writes_of_a_batch_are_one_pwritev();
    test_a_condition_holds_until_something_is_written();
    test_more_writes_than_a_group_holds();
    test_states();
    test_a_failed_group_fails_all_its_requests();
    test_a_read_behind_a_failed_write();
    test_a_long_write_that_finds_no_segment();
    test_a_write_of_several_records_waits_for_room_for_all_of_them();
    test_two_volumes_share_a_journal();
    test_nothing_is_done_beyond_the_end_of_a_volume_that_shrank();
    return 0;
}
