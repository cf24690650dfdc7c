/* crc32c, its pages, and the zero scan, at every length and alignment where they change course. */
#include <string.h>

#include "blocks.h"
#include "bytes.h"
#include "check.h"
#include "crc32c.h"

static uint32_t slow_crc32c(uint32_t crc, const uint8_t *data, size_t length)
{
    crc = ~crc;
    for (size_t i = 0; i < length; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    return ~crc;
}

static void test_crc32c(void)
{
    CHECK_EQ(bd_crc32c(0, "123456789", 9), 0xe3069283); /* RFC 3720 B.4 and everybody's check */
    CHECK_EQ(bd_crc32c(0, NULL, 0), 0);
    CHECK_EQ(bd_crc32c(77, NULL, 0), 77);
    uint8_t data[700];
    uint64_t random = 1;
    random_bytes(&random, data, sizeof data);
    for (size_t start = 0; start < 17; start++)
        for (size_t length = 0; length < 600; length += 7)
            CHECK_EQ(bd_crc32c(5, data + start, length), slow_crc32c(5, data + start, length));
    for (size_t cut = 0; cut <= sizeof data; cut++)
        CHECK_EQ(bd_crc32c(bd_crc32c(0, data, cut), data + cut, sizeof data - cut),
                 bd_crc32c(0, data, sizeof data));
}

static void test_crc32c_join_page(void)
{
    static uint8_t data[3 * BD_PAGE];
    uint64_t random = 3;
    random_bytes(&random, data, sizeof data);
    for (size_t length = 0; length <= 2 * BD_PAGE; length += 61) {
        uint32_t page = slow_crc32c(0, data + length, BD_PAGE);
        CHECK_EQ(bd_crc32c_join_page(slow_crc32c(0, data, length), page),
                 slow_crc32c(0, data, length + BD_PAGE));
    }
}

static void test_crc32c_pages(void)
{
    static uint8_t data[3 * BD_PAGE];
    uint64_t random = 2;
    random_bytes(&random, data, sizeof data);
    const size_t lengths[] = {0, 1, BD_PAGE - 1, BD_PAGE, BD_PAGE + 1, sizeof data};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t pages = (lengths[i] + BD_PAGE - 1) / BD_PAGE;
        uint8_t *out = malloc(pages * 4); /* exactly: a sanitizer sees a byte more */
        bd_crc32c_pages(data, lengths[i], out);
        for (size_t page = 0; page < pages; page++) {
            size_t rest = lengths[i] - page * BD_PAGE;
            CHECK_EQ(bd_get32(out + 4 * page),
                     slow_crc32c(0, data + page * BD_PAGE, rest < BD_PAGE ? rest : BD_PAGE));
        }
        free(out);
    }
}

static void test_is_zero(void)
{
    CHECK(bd_is_zero(NULL, 0));
    for (size_t length = 1; length < 200; length++) {
        uint8_t *data = calloc(1, length);
        CHECK(bd_is_zero(data, length));
        for (size_t at = 0; at < length; at++) {
            data[at] = at % 2 ? 1 : 128;
            CHECK(!bd_is_zero(data, length));
            data[at] = 0;
        }
        memset(data, 7, length); /* each byte equals the one sixteen before it */
        CHECK(!bd_is_zero(data, length));
        free(data);
    }
}

int main(void)
{
    test_crc32c();
    test_crc32c_join_page();
    test_crc32c_pages();
    test_is_zero();
    return 0;
}
