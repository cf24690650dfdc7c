/* Runs a fuzz target over files and folders of files, for compilers without libFuzzer and for
 * ctest. A crash is the target's own; the name of the input is on stderr before it runs. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "fuzz.h"

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return -1;
    }
    uint8_t *data = NULL;
    size_t size = 0;
    size_t got;
    do {
        data = realloc(data, size + 65536);
        CHECK(data != NULL);
        got = fread(data + size, 1, 65536, file);
        size += got;
    } while (got > 0);
    fclose(file);
    fprintf(stderr, "%s\n", path);
    uint8_t *exact = malloc(size ? size : 1); /* so that a sanitizer sees the end */
    CHECK(exact != NULL);
    memcpy(exact, data, size);
    free(data);
    int result = LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    return result == 0 ? 1 : -1;
}

static int run_path(const char *path)
{
    struct stat status;
    if (stat(path, &status) < 0 || !S_ISDIR(status.st_mode))
        return run_file(path);
    struct dirent **names;
    int count = scandir(path, &names, NULL, compare_names);
    int ran = 0;
    for (int i = 0; i < count; i++) {
        char child[4096];
        snprintf(child, sizeof child, "%s/%s", path, names[i]->d_name);
        if (ran >= 0 && names[i]->d_name[0] != '.') {
            int result = run_path(child);
            ran = result < 0 ? result : ran + result;
        }
        free(names[i]);
    }
    if (count >= 0)
        free(names);
    return ran;
}

int main(int count, char **paths)
{
    int ran = 0;
    for (int i = 1; i < count; i++) {
        int result = run_path(paths[i]);
        if (result < 0)
            return 1;
        ran += result;
    }
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
    printf("%d inputs\n", ran);
    return ran > 0 ? 0 : 1; /* an empty corpus is a wrong path */
}
