#include "sites.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name;
    enum bd_site_kind kind;
} table[] = {
#define BD_SITE_ROW(site, kind, name) {name, BD_SITE_##kind},
    BD_SITES(BD_SITE_ROW)
#undef BD_SITE_ROW
};

static struct {
    bool armed;
    uint64_t nth;
    uint64_t chance;
    uint64_t seed;
    atomic_ullong reached;
    atomic_ullong fired;
} states[BD_SITE_COUNT];

atomic_bool bd_sites_armed;
static int report_fd = -1;

/* A line is far below PIPE_BUF, in one write to a file opened with O_APPEND: lines never mix. */
static void report(const char *what, enum bd_site site)
{
    char line[80];
    int length = snprintf(line, sizeof line, "%s %s\n", what, table[site].name);
    if (report_fd >= 0 && write(report_fd, line, (size_t)length) != length)
        report_fd = -1;
}

/* splitmix64: any two of its inputs give unrelated outputs. */
static uint64_t mixed(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

bool bd_site_decide(enum bd_site site)
{
    if (!states[site].armed)
        return false;
    uint64_t count = atomic_fetch_add(&states[site].reached, 1) + 1;
    if (count == 1)
        report("reached", site);
    bool fires = states[site].nth > 0
                     ? count == states[site].nth
                     : mixed(states[site].seed ^ mixed(count)) >> 32 < states[site].chance;
    if (!fires)
        return false;
    if (atomic_fetch_add(&states[site].fired, 1) == 0)
        report("fired", site);
    if (table[site].kind == BD_SITE_POINT)
        kill(getpid(), SIGKILL);
    return true;
}

int bd_site_arm(const char *name, uint64_t nth, uint64_t chance, uint64_t seed)
{
    for (int site = 0; site < BD_SITE_COUNT; site++) {
        if (strcmp(table[site].name, name) != 0)
            continue;
        states[site].nth = nth;
        states[site].chance = chance;
        states[site].seed = seed;
        atomic_store(&states[site].reached, 0);
        atomic_store(&states[site].fired, 0);
        states[site].armed = true;
        atomic_store(&bd_sites_armed, true);
        return 0;
    }
    return -ENOENT;
}

void bd_sites_disarm(void)
{
    atomic_store(&bd_sites_armed, false);
    for (int site = 0; site < BD_SITE_COUNT; site++)
        states[site].armed = false;
}

void bd_sites_report(int fd)
{
    report_fd = fd;
}

struct bd_site_facts bd_site_facts(enum bd_site site)
{
    return (struct bd_site_facts){.name = table[site].name,
                                  .kind = table[site].kind,
                                  .reached = atomic_load(&states[site].reached),
                                  .fired = atomic_load(&states[site].fired)};
}
